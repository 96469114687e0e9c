//! `#[entity]`: reads the impl block, checks it, and hands it to [`expand`].

use darling::FromMeta;
use darling::ast::NestedMeta;
use darling::util::SpannedValue;
use proc_macro2::{Ident, TokenStream};
use quote::quote;
use syn::{Error, ImplItem, ItemImpl, Path, Result, Type, parse2};

use crate::docs::first_paragraph;
use crate::span::TimeSpan;
use method::Method;

mod expand;
mod method;

#[derive(Debug, FromMeta)]
struct Options {
    name: Option<SpannedValue<String>>,
    group_by: Option<Path>,
    mailbox: Option<SpannedValue<u32>>,
    idle: Option<TimeSpan>,
    turn: Option<TimeSpan>,
}

/// An entity, read and checked.
struct Entity {
    /// The state's type, as the impl block names it.
    ty: Type,
    /// The last name of it: what generated names begin with.
    ident: Ident,
    name: String,
    doc: String,
    options: Options,
    methods: Vec<Method>,
}

/// Expands `#[entity(..)]`. The impl block itself always comes out, without our attributes, so
/// that one mistake gives one error.
pub(crate) fn entity(options: TokenStream, item: &TokenStream) -> TokenStream {
    let Ok(mut block) = parse2::<ItemImpl>(item.clone()) else {
        let text = "`#[entity]` goes on an impl block: `impl Account { .. }`";
        let error = Error::new_spanned(item, text).into_compile_error();
        return quote!(#item #error);
    };
    let rest = match read(options, &mut block) {
        Ok(entity) => expand::expand(&entity),
        Err(error) => error.into_compile_error(),
    };
    quote!(#block #rest)
}

fn read(options: TokenStream, block: &mut ItemImpl) -> Result<Entity> {
    let mut errors = None;
    let mut methods = Vec::new();
    for item in &mut block.items {
        let ImplItem::Fn(function) = item else { continue };
        match method::read(function) {
            Ok(method) => methods.extend(method),
            Err(error) => push(&mut errors, error),
        }
    }
    check_names(&methods, &mut errors);
    let ident = check_block(block).map_err(|error| push(&mut errors, error)).ok();
    let options = read_options(options).map_err(|error| push(&mut errors, error)).ok();
    if let Some(error) = errors {
        return Err(error);
    }
    let ((name, options), ident) =
        options.zip(ident).expect("both are there when there is no error");
    let (ty, doc) = ((*block.self_ty).clone(), first_paragraph(&block.attrs));
    Ok(Entity { ty, ident, name, doc, options, methods })
}

/// Adds an error to those found before.
pub(crate) fn push(errors: &mut Option<Error>, error: Error) {
    match errors {
        Some(errors) => errors.combine(error),
        None => *errors = Some(error),
    }
}

fn read_options(options: TokenStream) -> Result<(String, Options)> {
    let options = Options::from_list(&NestedMeta::parse_meta_list(options)?)?;
    let Some(name) = &options.name else {
        let text = "an entity has a name, stored with it for ever: `#[entity(name = \"account\")]`";
        return Err(Error::new(proc_macro2::Span::call_site(), text));
    };
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c);
    if name.is_empty() || name.len() > 64 || !name.chars().all(allowed) {
        let text = "a name has 1 to 64 lower-case letters, digits, '-', '_' and '.'";
        return Err(Error::new(name.span(), text));
    }
    if let Some(mailbox) = options.mailbox.as_ref().filter(|mailbox| ***mailbox == 0) {
        return Err(Error::new(mailbox.span(), "a mailbox has room for one message at least"));
    }
    Ok((name.as_ref().clone(), options))
}

fn check_block(block: &ItemImpl) -> Result<Ident> {
    if let Some((_, path, _)) = &block.trait_ {
        let text = "`#[entity]` goes on the entity's own impl block, not on a trait's";
        return Err(Error::new_spanned(path, text));
    }
    if !block.generics.params.is_empty() {
        let text = "an entity has no generic parameters: each kind has one state type";
        return Err(Error::new_spanned(&block.generics, text));
    }
    let last = match &*block.self_ty {
        Type::Path(path) if path.qself.is_none() => path.path.segments.last(),
        _ => None,
    };
    match last {
        Some(last) if last.arguments.is_none() => Ok(last.ident.clone()),
        _ => {
            let text = "an entity is a struct or enum of its own, without generic arguments";
            Err(Error::new_spanned(&block.self_ty, text))
        }
    }
}

fn check_names(methods: &[Method], errors: &mut Option<Error>) {
    for (at, method) in methods.iter().enumerate() {
        let same = |other: &&Method| other.message_name() == method.message_name();
        if let Some(other) = methods[..at].iter().find(same) {
            let text = format!(
                "`{}` and `{}` have the same name on the wire or in code",
                other.name(),
                method.name()
            );
            push(errors, Error::new(method.ident.span(), text));
        }
    }
}
