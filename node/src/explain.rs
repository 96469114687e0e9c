//! The error codes and what each of them means: one page per code, built into the binary.
//!
//! `mainstay explain MS-2101` prints a page; problem documents carry the same codes and titles.

/// One error code with its page.
#[derive(Debug, Clone, Copy)]
pub struct Code {
    /// The code: `MS-2101`.
    pub id: &'static str,
    /// Its page, in Markdown: what happened, was anything changed, what to do.
    pub page: &'static str,
}

impl Code {
    /// The page's title, without the code.
    pub fn title(&self) -> &'static str {
        let line = self.page.lines().next().unwrap_or_default();
        line.split_once(": ").map_or(line, |(_, title)| title)
    }

    /// The lines under a heading of the page: `What to do`.
    pub fn section(&self, heading: &'static str) -> impl Iterator<Item = &'static str> {
        let page =
            self.page.lines().skip_while(move |line| line.strip_prefix("## ") != Some(heading));
        page.skip(1).take_while(|line| !line.starts_with("## ")).filter(|line| !line.is_empty())
    }
}

macro_rules! codes {
    ($($id:literal)*) => {
        /// All codes, in order.
        pub const CODES: &[Code] = &[
            $(Code { id: $id, page: include_str!(concat!("explain/", $id, ".md")) },)*
        ];
    };
}

codes! {
    "MS-1001" "MS-1002" "MS-1003" "MS-1101" "MS-1102" "MS-1103" "MS-1104" "MS-1105" "MS-1106"
    "MS-1107" "MS-1108" "MS-1109" "MS-1110" "MS-1111"
    "MS-1201" "MS-1202" "MS-1203" "MS-1204" "MS-1205" "MS-1206" "MS-1301"
    "MS-2000" "MS-2001" "MS-2002" "MS-2003" "MS-2004" "MS-2005" "MS-2006" "MS-2007" "MS-2008"
    "MS-2009" "MS-2101" "MS-2102" "MS-2103" "MS-2104" "MS-2105" "MS-2106" "MS-2107" "MS-2108"
    "MS-2109" "MS-2110" "MS-2111" "MS-2112" "MS-2201" "MS-2301" "MS-2302" "MS-2303"
}

/// The code of this id, in any case and with or without its prefix: `MS-2101`, `ms-2101`, `2101`.
pub fn find(id: &str) -> Option<&'static Code> {
    let id = id.trim().to_ascii_uppercase();
    let digits = id.strip_prefix("MS-").unwrap_or(&id);
    CODES.iter().find(|code| &code.id[3..] == digits)
}

/// The title of a code of this crate's own table.
pub fn title(id: &str) -> &'static str {
    find(id).map_or("unexplained", Code::title)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    use super::*;

    #[test]
    fn every_page_is_in_the_table_and_tells_the_three_things() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/explain");
        let pages: BTreeSet<String> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        let table: BTreeSet<String> = CODES.iter().map(|code| format!("{}.md", code.id)).collect();
        assert_eq!(pages, table);
        for code in CODES {
            assert!(code.page.starts_with(&format!("# {}: ", code.id)), "{}", code.id);
            for part in ["Was anything changed", "What to do"] {
                assert!(code.section(part).next().is_some(), "{} says nothing on: {part}", code.id);
            }
            for part in ["## What happened\n", "## Was anything changed\n", "## What to do\n"] {
                assert!(code.page.contains(part), "{} lacks {part}", code.id);
            }
        }
        assert!(CODES.is_sorted_by_key(|code| code.id));
    }

    #[test]
    fn codes_are_found_however_they_are_written() {
        for id in ["MS-2101", "ms-2101", "2101", " MS-2101 "] {
            assert_eq!(find(id).unwrap().id, "MS-2101");
        }
        assert!(find("MS-9999").is_none());
        assert!(find("").is_none());
        assert_eq!(title("MS-2101"), "no room for another request");
    }
}
