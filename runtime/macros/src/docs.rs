//! Doc comments, as text.

use syn::{Attribute, Expr, ExprLit, Lit, Meta};

/// The first paragraph of a doc comment, on one line.
pub(crate) fn first_paragraph(attributes: &[Attribute]) -> String {
    let mut paragraph = String::new();
    for line in attributes.iter().filter_map(line) {
        for line in line.split('\n').map(str::trim) {
            match (line.is_empty(), paragraph.is_empty()) {
                (true, true) => {}
                (true, false) => return paragraph,
                (false, first) => {
                    paragraph.push_str(if first { "" } else { " " });
                    paragraph.push_str(line);
                }
            }
        }
    }
    paragraph
}

fn line(attribute: &Attribute) -> Option<String> {
    let Meta::NameValue(meta) = &attribute.meta else { return None };
    let Expr::Lit(ExprLit { lit: Lit::Str(text), .. }) = &meta.value else { return None };
    meta.path.is_ident("doc").then(|| text.value())
}

#[cfg(test)]
mod tests {
    use syn::parse_quote;

    use super::*;

    #[test]
    fn a_paragraph_ends_at_a_blank_line() {
        let function: syn::ItemFn = parse_quote! {
            /// Adds,
            /// and says so.
            ///
            /// # Errors
            #[inline]
            fn add() {}
        };
        assert_eq!(first_paragraph(&function.attrs), "Adds, and says so.");
        assert_eq!(first_paragraph(&[]), "");
    }
}
