//! One method of an entity: what it is, what it takes and gives, and what is wrong with it.

use darling::FromMeta;
use darling::ast::NestedMeta;
use darling::util::Flag;
use proc_macro2::Ident;
use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{
    Attribute, Error, FnArg, GenericArgument, ImplItemFn, Meta, Pat, PatType, PathArguments,
    Receiver, Result, ReturnType, Type, TypeImplTrait, TypeReference, parse_quote,
};

use crate::docs::first_paragraph;
use crate::span::TimeSpan;

#[derive(Debug, Default, FromMeta)]
#[darling(default)]
struct CommandOptions {
    blocking: Flag,
    deadline: Option<TimeSpan>,
}

#[derive(Debug, Default, FromMeta)]
#[darling(default)]
struct QueryOptions {
    deadline: Option<TimeSpan>,
}

/// How a method runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    Inline,
    Blocking,
    Async,
    Query,
}

/// A method with an attribute.
pub(super) struct Method {
    pub(super) ident: Ident,
    pub(super) style: Style,
    pub(super) deadline: Option<TimeSpan>,
    /// Doc comments, and `cfg`s that everything generated for the method stands under.
    pub(super) docs: Vec<Attribute>,
    pub(super) cfgs: Vec<Attribute>,
    pub(super) doc: String,
    pub(super) takes_context: bool,
    pub(super) arguments: Vec<Argument>,
    pub(super) value: Type,
    pub(super) error: Option<Type>,
}

/// An argument: a field of the message.
pub(super) struct Argument {
    pub(super) ident: Ident,
    pub(super) ty: Type,
    /// Doc comments and `#[serde(default)]`.
    pub(super) attributes: Vec<Attribute>,
}

impl Method {
    /// Its name on the wire.
    pub(super) fn name(&self) -> String {
        let name = self.ident.to_string();
        name.strip_prefix("r#").map(ToOwned::to_owned).unwrap_or(name)
    }

    /// What the name of its message type ends with: `hold_all` gives `HoldAll`.
    pub(super) fn message_name(&self) -> String {
        self.name()
            .split('_')
            .flat_map(|word| {
                let mut letters = word.chars();
                letters.next().map(|first| first.to_ascii_uppercase()).into_iter().chain(letters)
            })
            .collect()
    }
}

/// Reads a method and takes our attributes off it; `None` for a plain helper.
pub(super) fn read(function: &mut ImplItemFn) -> Result<Option<Method>> {
    let ours = |attribute: &Attribute| {
        attribute.path().is_ident("command") || attribute.path().is_ident("query")
    };
    let (marks, rest): (Vec<_>, Vec<_>) =
        std::mem::take(&mut function.attrs).into_iter().partition(ours);
    function.attrs = rest;
    let Some(mark) = marks.first() else { return Ok(None) };
    let arguments = take_arguments(function);
    if let Some(second) = marks.get(1) {
        return Err(Error::new_spanned(second, "a method is one command or one query"));
    }
    let query = mark.path().is_ident("query");
    let (style, deadline) =
        if query { read_query(mark, function)? } else { read_command(mark, function)? };
    check_signature(function)?;
    check_receiver(function, query)?;
    let mut arguments = arguments?;
    let takes_context = check_context(&mut arguments, query)?;
    for argument in &arguments {
        check_owned(&argument.ty, "an argument")?;
    }
    let (value, error) = read_output(&function.sig.output)?;
    // receiver, owned arguments and a `Result` are the caller's view of it, not its author's taste
    function.attrs.push(parse_quote! {
        #[allow(
            clippy::unused_self,
            clippy::needless_pass_by_value,
            clippy::unnecessary_wraps,
            reason = "called from afar"
        )]
    });
    let take = |name: &'static str| {
        function.attrs.iter().filter(move |attribute| attribute.path().is_ident(name)).cloned()
    };
    Ok(Some(Method {
        ident: function.sig.ident.clone(),
        style,
        deadline,
        docs: take("doc").collect(),
        cfgs: take("cfg").collect(),
        doc: first_paragraph(&function.attrs),
        takes_context,
        arguments,
        value,
        error,
    }))
}

fn read_command(mark: &Attribute, function: &ImplItemFn) -> Result<(Style, Option<TimeSpan>)> {
    let options: CommandOptions = options(mark)?;
    let style = match (&function.sig.asyncness, options.blocking.is_present()) {
        (Some(_), true) => {
            let text = "a blocking command is a plain `fn`: it has a thread of its own";
            return Err(Error::new(options.blocking.span(), text));
        }
        (Some(_), false) => Style::Async,
        (None, true) => Style::Blocking,
        (None, false) => Style::Inline,
    };
    Ok((style, options.deadline))
}

fn read_query(mark: &Attribute, function: &ImplItemFn) -> Result<(Style, Option<TimeSpan>)> {
    let options: QueryOptions = options(mark)?;
    if let Some(token) = &function.sig.asyncness {
        let text = "a query is a plain `fn`: it reads the state at one instant; to call others, \
                    make it a command";
        return Err(Error::new_spanned(token, text));
    }
    Ok((Style::Query, options.deadline))
}

fn options<T: FromMeta + Default>(mark: &Attribute) -> Result<T> {
    match &mark.meta {
        Meta::Path(_) => Ok(T::default()),
        Meta::List(list) => Ok(T::from_list(&NestedMeta::parse_meta_list(list.tokens.clone())?)?),
        Meta::NameValue(meta) => {
            Err(Error::new_spanned(meta, "options stand in parentheses: `#[command(blocking)]`"))
        }
    }
}

fn check_signature(function: &ImplItemFn) -> Result<()> {
    let signature = &function.sig;
    if !signature.generics.params.is_empty() {
        let text = "a method that is called from elsewhere has no generic parameters: what \
                    travels is of one type";
        return Err(Error::new_spanned(&signature.generics, text));
    }
    if let Some(token) = &signature.unsafety {
        return Err(Error::new_spanned(token, "a method that is called from elsewhere is safe"));
    }
    if signature.ident.to_string().chars().any(|c| !matches!(c, 'a'..='z' | '0'..='9' | '_' | '#'))
    {
        let text = "a method's name has lower-case letters, digits and '_': it stands in URLs";
        return Err(Error::new_spanned(&signature.ident, text));
    }
    Ok(())
}

fn check_receiver(function: &ImplItemFn, query: bool) -> Result<()> {
    let Some(FnArg::Receiver(receiver)) = function.sig.inputs.first() else {
        let text = if query { "a query takes `&self`" } else { "a command takes `&mut self`" };
        return Err(Error::new_spanned(&function.sig.ident, text));
    };
    let Receiver { reference, mutability, colon_token, .. } = receiver;
    let wrong = match (reference, colon_token, mutability, query) {
        (None, ..) | (_, Some(_), ..) => {
            "the state stays where it is: a command takes `&mut self`, a query `&self`"
        }
        (Some((_, Some(_))), ..) => "the state is borrowed for one turn: it has no lifetime",
        (_, _, Some(_), true) => {
            "a query takes `&self`: any copy may answer it. What changes the state is a command"
        }
        (_, _, None, false) => {
            "a command takes `&mut self`. What only reads is a query: `#[query]`"
        }
        (_, _, Some(_), false) | (_, _, None, true) => return Ok(()),
    };
    Err(Error::new_spanned(receiver, wrong))
}

/// The arguments behind the receiver, and their attributes off the function.
fn take_arguments(function: &mut ImplItemFn) -> Result<Vec<Argument>> {
    let mut arguments = Vec::new();
    let mut errors = None;
    for input in &mut function.sig.inputs {
        let FnArg::Typed(input) = input else { continue };
        match take_argument(input) {
            Ok(argument) => arguments.push(argument),
            Err(error) => super::push(&mut errors, error),
        }
    }
    errors.map_or(Ok(arguments), Err)
}

fn take_argument(input: &mut PatType) -> Result<Argument> {
    let attributes = std::mem::take(&mut input.attrs);
    for attribute in &attributes {
        if !attribute.path().is_ident("doc") && !is_serde_default(attribute) {
            let text = "an argument may carry a doc comment and `#[serde(default)]`";
            return Err(Error::new_spanned(attribute, text));
        }
    }
    match &*input.pat {
        Pat::Ident(pattern) if pattern.by_ref.is_none() && pattern.subpat.is_none() => {
            Ok(Argument { ident: pattern.ident.clone(), ty: (*input.ty).clone(), attributes })
        }
        pattern => {
            let text = "an argument has a name: it is a member of the JSON object that calls it";
            Err(Error::new_spanned(pattern, text))
        }
    }
}

fn is_serde_default(attribute: &Attribute) -> bool {
    let Meta::List(list) = &attribute.meta else { return false };
    let Ok(metas) = NestedMeta::parse_meta_list(list.tokens.clone()) else { return false };
    let default = |meta: &NestedMeta| match meta {
        NestedMeta::Meta(meta) => meta.path().is_ident("default"),
        NestedMeta::Lit(_) => false,
    };
    list.path.is_ident("serde") && metas.iter().all(default)
}

/// Takes the context off the arguments, if it is their first.
fn check_context(arguments: &mut Vec<Argument>, query: bool) -> Result<bool> {
    let Some(at) = arguments.iter().position(|argument| names_context(&argument.ty)) else {
        return Ok(false);
    };
    let context = arguments.remove(at);
    let form = if query { "`&Cx<'_>`" } else { "`&mut Cx<'_>`" };
    match &context.ty {
        Type::Reference(reference) if query && reference.mutability.is_some() => {
            Err(Error::new_spanned(&context.ty, format!("a query's context is {form}")))
        }
        Type::Reference(_) if at == 0 => Ok(true),
        Type::Reference(_) => {
            Err(Error::new_spanned(&context.ty, "the context comes before the arguments"))
        }
        _ => Err(Error::new_spanned(&context.ty, format!("the context is borrowed: {form}"))),
    }
}

fn names_context(ty: &Type) -> bool {
    match ty {
        Type::Reference(reference) => names_context(&reference.elem),
        Type::Path(path) => path.path.segments.last().is_some_and(|last| last.ident == "Cx"),
        _ => false,
    }
}

/// Value and error of a return type: only a `Result` with both is fallible.
fn read_output(output: &ReturnType) -> Result<(Type, Option<Type>)> {
    let ReturnType::Type(_, ty) = output else { return Ok((parse_quote!(()), None)) };
    check_owned(ty, "a reply")?;
    let Type::Path(path) = &**ty else { return Ok(((**ty).clone(), None)) };
    let Some(last) = path.path.segments.last().filter(|last| last.ident == "Result") else {
        return Ok(((**ty).clone(), None));
    };
    let mut types = Vec::new();
    if let PathArguments::AngleBracketed(arguments) = &last.arguments {
        for argument in &arguments.args {
            if let GenericArgument::Type(ty) = argument {
                types.push(ty.clone());
            }
        }
    }
    let Ok([value, error]) = <[Type; 2]>::try_from(types) else {
        let text = "write `Result<T, E>` with both types: both travel";
        return Err(Error::new_spanned(ty, text));
    };
    Ok((value, Some(error)))
}

/// Refuses references and `impl Trait` anywhere in a type that travels.
fn check_owned(ty: &Type, what: &'static str) -> Result<()> {
    let mut search = Borrows { what, error: None };
    search.visit_type(ty);
    search.error.map_or(Ok(()), Err)
}

struct Borrows {
    what: &'static str,
    error: Option<Error>,
}

impl<'ast> Visit<'ast> for Borrows {
    fn visit_type_reference(&mut self, reference: &'ast TypeReference) {
        let text = format!(
            "{} travels between nodes, so it is owned: `String` instead of `&str`, `Vec<T>` \
             instead of `&[T]`",
            self.what
        );
        super::push(&mut self.error, Error::new(reference.and_token.span(), text));
        visit::visit_type(self, &reference.elem);
    }

    fn visit_type_impl_trait(&mut self, ty: &'ast TypeImplTrait) {
        let text = format!("{} is of one type that can travel, not `impl Trait`", self.what);
        super::push(&mut self.error, Error::new_spanned(ty, text));
    }
}
