//! The code of an entity: per method a message and its handler, then the reference and the kind.
//!
//! Generated names carry the place of the user's name, so that an editor jumps there, and the
//! macro's own context, so that lints meant for people stay away.

use proc_macro2::{Group, Ident, Span, TokenStream, TokenTree};
use quote::{ToTokens, format_ident, quote, quote_spanned};
use syn::spanned::Spanned;

use super::Entity;
use super::method::{Method, Style};

/// Everything beside the impl block.
pub(super) fn expand(entity: &Entity) -> TokenStream {
    let messages = entity.methods.iter().map(|method| message(entity, method));
    let reference = reference(entity);
    let kind = kind(entity);
    quote!(#(#messages)* #reference #kind)
}

fn message(entity: &Entity, method: &Method) -> TokenStream {
    let Entity { ty, name: kind, .. } = entity;
    let Method { cfgs, docs, doc, deadline, .. } = method;
    let message = message_ident(entity, method);
    let name = method.name();
    let summary = format!(" The arguments of `{name}` of a `{kind}`.");
    let fields = method.arguments.iter().map(|argument| {
        let (ident, ty) = (placed(&argument.ident), concrete(&argument.ty, ty));
        let attributes = &argument.attributes;
        let doc = format!(" The argument `{}`.", argument.ident);
        let doc = (!documented(attributes)).then(|| quote!(#[doc = #doc]));
        quote!(#doc #(#attributes)* pub #ident: #ty)
    });
    let (value, error) = output(entity, method);
    let role = if method.style == Style::Query { quote!(Query) } else { quote!(Command) };
    let deadline = deadline.map(|deadline| {
        quote! {
            const DEADLINE: ::core::option::Option<::core::time::Duration> =
                ::core::option::Option::Some(#deadline);
        }
    });
    let more = (!docs.is_empty()).then(|| quote!(#[doc = ""] #(#docs)*));
    let handler = handler(entity, method, &message);
    let disguised = disguised_result(method, &value);
    quote! {
        #(#cfgs)*
        #[doc = #summary]
        #more
        #[derive(
            Debug,
            ::mainstay::__private::serde::Serialize,
            ::mainstay::__private::serde::Deserialize,
            ::mainstay::__private::schemars::JsonSchema,
        )]
        #[serde(crate = "::mainstay::__private::serde")]
        #[schemars(crate = "::mainstay::__private::schemars")]
        #[allow(private_interfaces, dead_code, reason = "as visible as its entity")]
        pub struct #message { #(#fields),* }

        #(#cfgs)*
        impl ::mainstay::entity::#role<#ty> for #message {
            const NAME: &'static str = #name;
            const DOC: &'static str = #doc;
            #deadline
            type Value = #value;
            type Error = #error;
        }

        #handler
        #disguised
    }
}

fn handler(entity: &Entity, method: &Method, message: &Ident) -> TokenStream {
    let ty = &entity.ty;
    let Method { ident, cfgs, .. } = method;
    let (value, error) = output(entity, method);
    let (handles, asyncness, wait) = match method.style {
        Style::Inline | Style::Blocking => (quote!(HandleCommand), None, None),
        Style::Async => (quote!(HandleAsync), Some(quote!(async)), Some(quote!(.await))),
        Style::Query => (quote!(HandleQuery), None, None),
    };
    let (receiver, context) = if method.style == Style::Query {
        (quote!(&self), quote!(&::mainstay::entity::Cx<'_>))
    } else {
        (quote!(&mut self), quote!(&mut ::mainstay::entity::Cx<'_>))
    };
    let cx = if method.takes_context { quote!(cx) } else { quote!(_cx) };
    let from = if method.arguments.is_empty() { quote!(_message) } else { quote!(message) };
    let given = method.takes_context.then(|| quote!(#cx,));
    let fields = method.arguments.iter().map(|argument| {
        let ident = placed(&argument.ident);
        quote!(message.#ident)
    });
    let call = quote!(Self::#ident(self, #given #(#fields),*) #wait);
    let body = match (&method.error, is_unit(&value)) {
        (Some(_), _) => call,
        (None, true) => quote!({ #call; ::core::result::Result::Ok(()) }),
        (None, false) => quote!(::core::result::Result::Ok(#call)),
    };
    quote! {
        #(#cfgs)*
        impl ::mainstay::entity::#handles<#message> for #ty {
            #asyncness fn handle(
                #receiver,
                #cx: #context,
                #from: #message,
            ) -> ::core::result::Result<#value, #error> {
                #body
            }
        }
    }
}

/// An alias of `Result` would be taken for a value, and its `Err` would keep the changed state.
fn disguised_result(method: &Method, value: &TokenStream) -> Option<TokenStream> {
    let text = format!(
        "`{}` returns a `Result` under another name: write `Result<T, E>`, so that an `Err` takes \
         the state back",
        method.name()
    );
    let cfgs = &method.cfgs;
    let check = quote_spanned! {place(method.value.span())=>
        #(#cfgs)*
        const _: () = {
            use ::mainstay::__private::Plain as _;
            ::core::assert!(!::mainstay::__private::Probe::<#value>::IS_RESULT, #text);
        };
    };
    (!is_unit(value)).then_some(check)
}

fn reference(entity: &Entity) -> TokenStream {
    let Entity { ty, ident, name, .. } = entity;
    let reference = format_ident!("{}Ref", ident, span = place(ident.span()));
    let doc =
        format!(" A reference to one `{name}`. Its methods make calls; await one to send it.");
    let methods = entity.methods.iter().map(|method| ref_method(entity, method));
    quote! {
        #[doc = #doc]
        #[derive(Debug, Clone)]
        #[allow(private_interfaces, dead_code, reason = "as visible as its entity")]
        pub struct #reference(::mainstay::client::Ref<#ty>);

        #[allow(
            private_interfaces,
            dead_code,
            clippy::too_many_arguments,
            reason = "as its entity's own methods are"
        )]
        impl #reference {
            #(#methods)*
        }

        impl ::core::convert::From<::mainstay::client::Ref<#ty>> for #reference {
            fn from(reference: ::mainstay::client::Ref<#ty>) -> Self {
                Self(reference)
            }
        }

        impl ::core::convert::AsRef<::mainstay::client::Ref<#ty>> for #reference {
            fn as_ref(&self) -> &::mainstay::client::Ref<#ty> {
                &self.0
            }
        }
    }
}

fn ref_method(entity: &Entity, method: &Method) -> TokenStream {
    let ty = &entity.ty;
    let Method { docs, cfgs, .. } = method;
    let message = message_ident(entity, method);
    let ident = placed(&method.ident);
    let doc = format!(" Makes a call of `{}`.", method.name());
    let doc = (!documented(docs)).then(|| quote!(#[doc = #doc]));
    let names: Vec<_> = method.arguments.iter().map(|argument| placed(&argument.ident)).collect();
    let types = method.arguments.iter().map(|argument| concrete(&argument.ty, ty));
    let (call, make) = if method.style == Style::Query {
        (quote!(QueryCall), quote!(query))
    } else {
        (quote!(CommandCall), quote!(command))
    };
    quote! {
        #(#cfgs)*
        #doc
        #(#docs)*
        pub fn #ident(&self, #(#names: #types),*) -> ::mainstay::client::#call<#ty, #message> {
            self.0.#make(#message { #(#names),* })
        }
    }
}

fn kind(entity: &Entity) -> TokenStream {
    let Entity { ty, ident, name, doc, options, .. } = entity;
    let reference = format_ident!("{}Ref", ident);
    let affinity = options.group_by.as_ref().map(|group_by| {
        quote! {
            fn affinity(key: &::mainstay::entity::Key) -> &str {
                #group_by(key)
            }
        }
    });
    let rows = entity.methods.iter().map(|method| {
        let (cfgs, message) = (&method.cfgs, message_ident(entity, method));
        let add = match method.style {
            Style::Inline => quote!(command),
            Style::Blocking => quote!(blocking),
            Style::Async => quote!(asynchronous),
            Style::Query => quote!(query),
        };
        quote!(#(#cfgs)* let methods = methods.#add::<#message>();)
    });
    let options = kind_options(entity);
    quote! {
        impl ::mainstay::entity::Entity for #ty {
            const KIND: &'static str = #name;
            const DOC: &'static str = #doc;
            type Ref = #reference;
            #options
            #affinity
            fn methods() -> ::mainstay::entity::Methods<Self> {
                let methods = ::mainstay::entity::Methods::new();
                #(#rows)*
                methods
            }
        }
    }
}

fn kind_options(entity: &Entity) -> Option<TokenStream> {
    let options = &entity.options;
    let mailbox = options.mailbox.as_ref().map(|mailbox| **mailbox);
    let set = [
        mailbox.map(|mailbox| quote!(options.mailbox = #mailbox;)),
        options.idle.map(|idle| quote!(options.idle = #idle;)),
        options.turn.map(|turn| quote!(options.turn = #turn;)),
    ];
    let set: Vec<_> = set.into_iter().flatten().collect();
    let options = quote! {
        fn options() -> ::mainstay::entity::KindOptions {
            let mut options = ::mainstay::entity::KindOptions::default();
            #(#set)*
            options
        }
    };
    (!set.is_empty()).then_some(options)
}

fn output(entity: &Entity, method: &Method) -> (TokenStream, TokenStream) {
    let value = concrete(&method.value, &entity.ty);
    let never = || quote!(::mainstay::entity::Never);
    let error = method.error.as_ref().map_or_else(never, |error| concrete(error, &entity.ty));
    (value, error)
}

fn message_ident(entity: &Entity, method: &Method) -> Ident {
    let name = format!("{}{}", entity.ident, method.message_name());
    Ident::new(&name, place(method.ident.span()))
}

/// A user's name in generated code.
fn placed(ident: &Ident) -> Ident {
    let mut ident = ident.clone();
    ident.set_span(place(ident.span()));
    ident
}

fn place(span: Span) -> Span {
    Span::call_site().located_at(span)
}

fn documented(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| attribute.path().is_ident("doc"))
}

fn is_unit(value: &TokenStream) -> bool {
    syn::parse2::<syn::TypeTuple>(value.clone()).is_ok_and(|tuple| tuple.elems.is_empty())
}

/// A type with `Self` written out: it also stands outside of the impl block.
fn concrete(ty: &impl ToTokens, this: &syn::Type) -> TokenStream {
    write_out(ty.to_token_stream(), this)
}

fn write_out(tokens: TokenStream, this: &syn::Type) -> TokenStream {
    tokens
        .into_iter()
        .map(|token| match token {
            TokenTree::Ident(ident) if ident == "Self" => this.to_token_stream(),
            TokenTree::Group(group) => {
                let mut inner = Group::new(group.delimiter(), write_out(group.stream(), this));
                inner.set_span(group.span());
                TokenTree::Group(inner).into()
            }
            token => token.into(),
        })
        .collect()
}
