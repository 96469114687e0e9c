//! Types that a state must not hold, wherever they stand in a field's type, and why.
//!
//! Types are known here by their last name only: an alias slips through.

use syn::visit::{self, Visit};
use syn::{Data, DeriveInput, Error, Field, Path, Result};

/// Checks every field.
pub(crate) fn check(item: &DeriveInput) -> Result<()> {
    let mut fields: Vec<(String, &Field)> = Vec::new();
    match &item.data {
        Data::Struct(data) => fields.extend(named(&data.fields, "")),
        Data::Enum(data) => {
            for variant in &data.variants {
                fields.extend(named(&variant.fields, &format!("{}.", variant.ident)));
            }
        }
        Data::Union(data) => {
            return Err(Error::new_spanned(data.union_token, "a union cannot be stored or sent"));
        }
    }
    let mut errors: Option<Error> = None;
    for (name, field) in fields {
        let mut search = Search { field: name, errors: &mut errors };
        search.visit_type(&field.ty);
    }
    errors.map_or(Ok(()), Err)
}

fn named<'f>(
    fields: &'f syn::Fields,
    prefix: &str,
) -> impl Iterator<Item = (String, &'f Field)> + use<'f> {
    let prefix = prefix.to_owned();
    fields.iter().enumerate().map(move |(at, field)| {
        let name = field.ident.as_ref().map_or_else(|| at.to_string(), ToString::to_string);
        (format!("{prefix}{name}"), field)
    })
}

struct Search<'e> {
    field: String,
    errors: &'e mut Option<Error>,
}

impl<'ast> Visit<'ast> for Search<'_> {
    fn visit_path(&mut self, path: &'ast Path) {
        if let Some(last) = path.segments.last() {
            let name = last.ident.to_string();
            if let Some(why) = why(&name) {
                let text = format!("field `{}` holds `{name}`: {why}", self.field);
                crate::entity::push(self.errors, Error::new_spanned(&last.ident, text));
            }
        }
        visit::visit_path(self, path);
    }
}

fn why(name: &str) -> Option<&'static str> {
    Some(match name {
        "HashMap" | "IndexMap" => {
            "it is not ordered by its keys, so equal values would encode to different bytes on \
             different copies; use `BTreeMap`"
        }
        "HashSet" | "IndexSet" => {
            "it is not ordered by its items, so equal values would encode to different bytes on \
             different copies; use `BTreeSet`"
        }
        "Cell" | "RefCell" | "UnsafeCell" | "OnceCell" | "LazyCell" | "OnceLock" | "LazyLock" => {
            "a query could change it behind `&self`, and nothing would log that; hold the plain \
             value, commands have `&mut self`"
        }
        "Mutex" | "RwLock" => {
            "an entity runs one turn at a time, so nothing needs a lock, and a query could change \
             it behind `&self`; hold the plain value"
        }
        "Rc" => "a state moves between threads; use `Box`, or `Arc` for shared constants",
        _ if name.starts_with("Atomic") => {
            "a query could change it behind `&self`, and nothing would log that; hold the plain \
             number, commands have `&mut self`"
        }
        _ => return None,
    })
}
