//! `#[state]` and `#[data]`: derives that need nothing but `mainstay` in the user's crate.

use darling::FromMeta;
use darling::ast::NestedMeta;
use darling::util::SpannedValue;
use proc_macro2::TokenStream;
use quote::quote;
use syn::punctuated::Punctuated;
use syn::{Attribute, Data, DeriveInput, Error, Fields, Path, Result, Token, parse2};

use crate::forbidden;

#[derive(Debug, FromMeta)]
struct StateOptions {
    version: Option<SpannedValue<u16>>,
    from: Option<Path>,
    default: Option<SpannedValue<String>>,
}

/// Expands `#[state(..)]`.
pub(crate) fn state(options: TokenStream, item: TokenStream) -> Result<TokenStream> {
    let item: DeriveInput = parse2(item)?;
    let options = StateOptions::from_list(&NestedMeta::parse_meta_list(options)?)?;
    let Some(version) = options.version else {
        let text = "a state has a schema version: `#[state(version = 1)]`";
        return Err(Error::new_spanned(&item.ident, text));
    };
    if *version == 0 {
        return Err(Error::new(version.span(), "versions begin at 1"));
    }
    if !item.generics.params.is_empty() {
        let text = "a state has no generic parameters: its bytes are of one type";
        return Err(Error::new_spanned(&item.generics, text));
    }
    if let Data::Struct(data) = &item.data
        && matches!(data.fields, Fields::Unnamed(_))
    {
        let text = "a state has named fields, so that others can be added later";
        return Err(Error::new_spanned(&data.fields, text));
    }
    forbidden::check(&item)?;
    let mut wanted = vec!["Debug"];
    match options.default.as_deref().map(String::as_str) {
        None => wanted.push("Default"),
        Some("manual") => {}
        Some(_) => {
            let span =
                options.default.as_ref().map_or_else(|| item.ident.span(), SpannedValue::span);
            return Err(Error::new(span, "`default` can only be \"manual\""));
        }
    }
    let upgrade = options.from.as_ref().map(upgrade);
    let check = options.from.as_ref().map(|old| check_order(old, &item));
    let derives = derives(&item, &wanted);
    let (name, version) = (&item.ident, *version);
    Ok(quote! {
        #derives
        #item
        impl ::mainstay::entity::State for #name {
            const VERSION: u16 = #version;
            #upgrade
        }
        #check
    })
}

fn upgrade(old: &Path) -> TokenStream {
    quote! {
        fn upgrade(
            version: u16,
            body: &[u8],
        ) -> ::core::result::Result<Self, ::mainstay::entity::host::StateError> {
            ::mainstay::entity::state::migrate::<#old, Self>(version, body)
        }
    }
}

fn check_order(old: &Path, new: &DeriveInput) -> TokenStream {
    let name = &new.ident;
    quote! {
        const _: () = ::core::assert!(
            <#old as ::mainstay::entity::State>::VERSION
                < <#name as ::mainstay::entity::State>::VERSION,
            "the state in `from` must be of an older version than this one",
        );
    }
}

/// Expands `#[data]`.
pub(crate) fn data(options: TokenStream, item: TokenStream) -> Result<TokenStream> {
    let item: DeriveInput = parse2(item)?;
    if !options.is_empty() {
        return Err(Error::new_spanned(options, "`#[data]` has no options"));
    }
    forbidden::check(&item)?;
    let derives = derives(&item, &["Clone", "Debug", "PartialEq"]);
    Ok(quote!(#derives #item))
}

/// Serde, schema and the wanted derives, without those that the item has itself.
fn derives(item: &DeriveInput, wanted: &[&str]) -> TokenStream {
    let present = derived(&item.attrs);
    let absent = |name: &str| !present.iter().any(|present| present == name);
    let mut paths: Vec<TokenStream> = Vec::new();
    for name in ["Serialize", "Deserialize"].into_iter().filter(|name| absent(name)) {
        let name = quote::format_ident!("{name}");
        paths.push(quote!(::mainstay::__private::serde::#name));
    }
    if absent("JsonSchema") {
        paths.push(quote!(::mainstay::__private::schemars::JsonSchema));
    }
    for name in wanted.iter().filter(|name| absent(name)) {
        let name = quote::format_ident!("{name}");
        paths.push(quote!(#name));
    }
    quote! {
        #[derive(#(#paths),*)]
        #[serde(crate = "::mainstay::__private::serde")]
        #[schemars(crate = "::mainstay::__private::schemars")]
    }
}

fn derived(attributes: &[Attribute]) -> Vec<String> {
    let derives = attributes.iter().filter(|attribute| attribute.path().is_ident("derive"));
    derives
        .filter_map(|derive| {
            derive.parse_args_with(Punctuated::<Path, Token![,]>::parse_terminated).ok()
        })
        .flatten()
        .filter_map(|path| path.segments.last().map(|last| last.ident.to_string()))
        .collect()
}
