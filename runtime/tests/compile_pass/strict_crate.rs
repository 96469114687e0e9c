//! A user's crate under strict lints: what the macros write must not trip any of them.

#![forbid(unsafe_code)]
#![deny(
    warnings,
    missing_docs,
    missing_debug_implementations,
    unreachable_pub,
    unused_qualifications,
    unused_lifetimes,
    elided_lifetimes_in_paths,
    private_interfaces,
    single_use_lifetimes,
    trivial_casts,
    unused_results
)]

use mainstay::prelude::*;

/// Public, with a public entity.
pub mod open {
    use mainstay::prelude::*;

    /// A list of names.
    #[state(version = 1)]
    pub struct List {
        names: Vec<String>,
    }

    #[entity(name = "list")]
    impl List {
        #[command]
        fn push(&mut self, name: String) {
            self.names.push(name);
        }

        #[command]
        async fn wait(&mut self) {}

        #[query]
        fn len(&self) -> usize {
            self.names.len()
        }
    }
}

/// Public, with an entity and its data that are not.
pub mod closed {
    use mainstay::prelude::*;

    #[data]
    struct Point {
        x: i64,
    }

    #[state(version = 1)]
    struct Path {
        points: Vec<Point>,
    }

    #[entity(name = "path", idle = "1h")]
    impl Path {
        #[command]
        fn push(&mut self, point: Point) -> Option<Point> {
            self.points.push(point);
            self.points.last().cloned()
        }

        #[command]
        fn handle(&mut self, message: String, cx: u8, methods: bool) -> (String, u8, bool) {
            (message, cx, methods)
        }

        #[query]
        fn clone(&self, command: Option<Self>) -> Vec<Point> {
            command.map_or_else(|| self.points.clone(), |path| path.points)
        }
    }

    pub(crate) fn register(registry: Registry) -> Registry {
        registry.entity::<Path>()
    }
}

#[state(version = 3, default = "manual")]
enum Switch {
    On { since: u64 },
    Off,
}

impl Default for Switch {
    fn default() -> Self {
        Self::Off
    }
}

#[entity(name = "switch")]
impl Switch {
    #[command]
    fn on(&mut self, cx: &mut Cx<'_>) {
        *self = Self::On { since: cx.now().0 };
    }

    #[query]
    fn since(&self) -> Option<u64> {
        match self {
            Self::On { since } => Some(*since),
            Self::Off => None,
        }
    }
}

fn main() {
    // entities may stand in a function, too
    #[state(version = 1)]
    struct Local {
        value: i64,
    }

    #[entity(name = "local")]
    impl Local {
        #[query]
        fn value(&self) -> i64 {
            self.value
        }
    }

    let registry = Registry::new().entity::<open::List>().entity::<Switch>().entity::<Local>();
    let registry = closed::register(registry).build().expect("the kinds are sound");
    assert_eq!(registry.kinds().len(), 4);
}
