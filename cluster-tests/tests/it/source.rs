//! The workspace as text: its files, their tokens, and the paths that they name.

use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// The folder of the workspace.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// One file of the workspace.
pub(crate) struct Source {
    /// Its path from the root, with `/`.
    pub(crate) path: String,
    /// What it holds.
    pub(crate) text: String,
}

/// All files below `folder` (from the root) with one of these endings, sorted.
pub(crate) fn files(folder: &str, endings: &[&str]) -> Vec<Source> {
    let mut found = Vec::new();
    collect(&root().join(folder), endings, &mut found);
    found.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(!found.is_empty(), "no file below {folder:?} ends with {endings:?}");
    found
}

fn collect(folder: &Path, endings: &[&str], found: &mut Vec<Source>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if path.is_dir() {
            let foreign = ["target", "runs", "mainstay-data", ".git"].contains(&name.as_str());
            if !foreign {
                collect(&path, endings, found);
            }
        } else if endings.iter().any(|ending| name.ends_with(ending)) {
            let text = String::from_utf8(fs::read(&path).unwrap())
                .unwrap_or_else(|_| panic!("{} is not UTF-8", path.display()));
            let path = path.strip_prefix(root()).unwrap().to_str().unwrap().replace('\\', "/");
            found.push(Source { path, text });
        }
    }
}

/// One file, by its path from the root.
pub(crate) fn file(path: &str) -> Option<String> {
    fs::read_to_string(root().join(path)).ok()
}

/// All string literals of a file outside its unit tests; comments are no literals, doc comments
/// are.
pub(crate) fn literals(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    walk_literals(tokens(text), &mut found);
    found
}

fn walk_literals(tokens: TokenStream, found: &mut Vec<String>) {
    for token in tokens {
        match token {
            TokenTree::Group(group) => walk_literals(group.stream(), found),
            TokenTree::Literal(literal) => {
                let text = literal.to_string();
                if let Some(inner) = text.strip_prefix('"').and_then(|t| t.strip_suffix('"')) {
                    found.push(inner.to_owned());
                }
            }
            TokenTree::Ident(_) | TokenTree::Punct(_) => {}
        }
    }
}

/// All identifiers of a file outside its unit tests.
pub(crate) fn identifiers(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    walk_identifiers(tokens(text), &mut found);
    found
}

fn walk_identifiers(tokens: TokenStream, found: &mut Vec<String>) {
    for token in tokens {
        match token {
            TokenTree::Group(group) => walk_identifiers(group.stream(), found),
            TokenTree::Ident(ident) => found.push(ident.to_string()),
            TokenTree::Literal(_) | TokenTree::Punct(_) => {}
        }
    }
}

/// The tokens of a file without the items that only tests see.
fn tokens(text: &str) -> TokenStream {
    let all: TokenStream = text.parse().unwrap_or_else(|error| panic!("not Rust: {error}"));
    let mut kept = Vec::new();
    let mut rest = all.into_iter().peekable();
    while let Some(token) = rest.next() {
        let attribute = matches!(&token, TokenTree::Punct(punct) if punct.as_char() == '#')
            && rest.peek().is_some_and(|next| next.to_string().replace(' ', "") == "[cfg(test)]");
        if !attribute {
            kept.push(token);
            continue;
        }
        // the item ends with its braces or its semicolon
        for token in rest.by_ref().skip(1) {
            let ends = match &token {
                TokenTree::Group(group) => group.delimiter() == Delimiter::Brace,
                TokenTree::Punct(punct) => punct.as_char() == ';',
                TokenTree::Ident(_) | TokenTree::Literal(_) => false,
            };
            if ends {
                break;
            }
        }
    }
    kept.into_iter().collect()
}

/// The module of a file below a crate's `src`: `storage/journal.rs` is `[storage, journal]`.
pub(crate) fn module_of(path_in_src: &str) -> Vec<String> {
    let stem = path_in_src.strip_suffix(".rs").unwrap();
    let mut module: Vec<String> = stem.split('/').map(str::to_owned).collect();
    if module.last().is_some_and(|last| last == "lib" || last == "main" || last == "mod") {
        module.pop();
    }
    module
}

/// Every path into the same crate that a file names outside its unit tests, as module paths from
/// the crate's root: `crate::a::b`, `super::c`, and the crate's own name.
pub(crate) fn inner_paths(text: &str, module: &[String], crate_name: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    let reader = PathReader { crate_name };
    reader.walk(tokens(text), module, &mut found);
    found
}

struct PathReader<'n> {
    crate_name: &'n str,
}

impl PathReader<'_> {
    fn walk(&self, tokens: TokenStream, module: &[String], found: &mut Vec<Vec<String>>) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let mut at = 0;
        while at < tokens.len() {
            if let TokenTree::Group(group) = &tokens[at] {
                // `mod inner { .. }` moves `super` one down.
                let inner = inline_module(&tokens, at);
                let module: Vec<String> = module.iter().cloned().chain(inner).collect();
                self.walk(group.stream(), &module, found);
                at += 1;
            } else if let Some((base, next)) = self.base(&tokens, at, module) {
                at = read_tail(&tokens, next, &base, found);
            } else {
                at += 1;
            }
        }
    }

    /// `crate::`, `super::super::`, `name_of_the_crate::`: the module that the path starts in and
    /// where it goes on.
    fn base(
        &self,
        tokens: &[TokenTree],
        at: usize,
        module: &[String],
    ) -> Option<(Vec<String>, usize)> {
        let follows_path = at >= 2 && is_colons(tokens, at - 2);
        if follows_path {
            return None;
        }
        let first = ident(tokens, at)?;
        if (first == "crate" || first == self.crate_name) && is_colons(tokens, at + 1) {
            return Some((Vec::new(), at + 3));
        }
        let mut base = module.to_vec();
        let mut at = at;
        let mut ups = 0;
        while ident(tokens, at).is_some_and(|word| word == "super") && is_colons(tokens, at + 1) {
            base.pop()?;
            ups += 1;
            at += 3;
        }
        (ups > 0).then_some((base, at))
    }
}

/// Reads `a::b::{c, d::e}` after a base; records each whole path, returns where it ended.
fn read_tail(
    tokens: &[TokenTree],
    mut at: usize,
    base: &[String],
    found: &mut Vec<Vec<String>>,
) -> usize {
    let mut path = base.to_vec();
    loop {
        if let Some(word) = ident(tokens, at) {
            path.push(word);
            if is_colons(tokens, at + 1) {
                at += 3;
                continue;
            }
            found.push(path);
            return at + 1;
        }
        if let Some(TokenTree::Group(group)) = tokens.get(at)
            && group.delimiter() == Delimiter::Brace
        {
            for branch in branches(group.stream()) {
                read_tail(&branch, 0, &path, found);
            }
            return at + 1;
        }
        // a glob, or generics: what was read so far is the path
        found.push(path);
        return at + 1;
    }
}

fn branches(tokens: TokenStream) -> Vec<Vec<TokenTree>> {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    tokens
        .split(|token| matches!(token, TokenTree::Punct(punct) if punct.as_char() == ','))
        .filter(|branch| !branch.is_empty())
        .map(<[TokenTree]>::to_vec)
        .collect()
}

fn inline_module(tokens: &[TokenTree], at: usize) -> Option<String> {
    let name = at.checked_sub(1).and_then(|at| ident(tokens, at))?;
    let word = at.checked_sub(2).and_then(|at| ident(tokens, at))?;
    (word == "mod").then_some(name)
}

fn ident(tokens: &[TokenTree], at: usize) -> Option<String> {
    match tokens.get(at)? {
        TokenTree::Ident(ident) => Some(ident.to_string()),
        TokenTree::Group(_) | TokenTree::Punct(_) | TokenTree::Literal(_) => None,
    }
}

fn is_colons(tokens: &[TokenTree], at: usize) -> bool {
    let colon =
        |at: usize| matches!(tokens.get(at), Some(TokenTree::Punct(p)) if p.as_char() == ':');
    colon(at) && colon(at + 1)
}

#[test]
fn paths_are_read_through_groups_macros_and_supers() {
    let text = r"
        use crate::storage::{journal::Journal, state::{self, State}};
        use super::frame;
        fn f() { vec![crate::router::Router::new()]; mainstay::lane::start(); other::crate_like(); }
        mod inner { use super::super::peers::Peer; }
        #[cfg(test)]
        mod tests { use crate::cluster::Cluster; }
        fn after() { crate::clock::now(); }
    ";
    let module = ["transport".to_owned(), "connection".to_owned()];
    let mut found: Vec<String> =
        inner_paths(text, &module, "mainstay").into_iter().map(|path| path.join("::")).collect();
    found.sort();
    let expected = [
        "clock::now",
        "lane::start",
        "router::Router::new",
        "storage::journal::Journal",
        "storage::state::State",
        "storage::state::self",
        "transport::frame",
        "transport::peers::Peer",
    ];
    assert_eq!(found, expected);
}
