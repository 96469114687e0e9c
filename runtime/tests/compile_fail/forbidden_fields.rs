use mainstay::prelude::*;

#[state(version = 1)]
struct Cells {
    a: Cell<u8>,
    b: Option<RefCell<u8>>,
    c: UnsafeCell<u8>,
    d: OnceCell<u8>,
}

#[state(version = 1)]
struct Locks {
    a: Mutex<u8>,
    b: Arc<RwLock<u8>>,
    c: AtomicU64,
    d: Rc<u8>,
}

#[state(version = 1)]
struct Maps {
    seen: Vec<(u8, std::collections::HashMap<String, Vec<HashSet<u8>>>)>,
}

#[state(version = 1)]
#[derive(Clone)]
enum Choice {
    #[default]
    None,
    Some { inner: [HashMap<u8, u8>; 2] },
}

#[data]
struct Argument(HashSet<u8>);

fn main() {}
