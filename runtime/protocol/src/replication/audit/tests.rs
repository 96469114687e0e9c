//! Rows of copies side by side: which of them are wrong, and who is believed.

use super::*;
use crate::id::{Key, KindId};

fn entity(key: &str) -> EntityId {
    EntityId { kind: KindId(7), key: Key::new(key).unwrap() }
}

/// Rows by key, seq and what stands for the bytes.
fn slice(applied: u64, rows: &[(&str, u64, u64)]) -> Slice {
    let row =
        |&(key, seq, hash): &(&str, u64, u64)| Row { entity: entity(key), seq: Seq(seq), hash };
    Slice { upto: None, applied: Seq(applied), rows: rows.iter().map(row).collect() }
}

fn said<const N: usize>(copies: [Said; N]) -> BTreeMap<NodeId, Said> {
    let name = |at| NodeId::new(&format!("n{}", at + 2)).unwrap();
    copies.into_iter().enumerate().map(|(at, said)| (name(at), said)).collect()
}

fn rows(slice: Slice) -> Said {
    Said::Rows(slice)
}

/// Who is wrong about which key, and what is done about it.
fn wrong(findings: &Findings) -> Vec<(&str, &str, Cure)> {
    let wrong = findings.wrong.iter();
    wrong.map(|it| (it.node.as_str(), it.entity.key.as_str(), it.cure)).collect()
}

fn compare<const N: usize>(primary: &Slice, copies: [Said; N]) -> Findings {
    Comparison::default().compare(primary, &said(copies))
}

#[test]
fn rows_of_one_entry_are_the_same_bytes_or_one_is_wrong() {
    let primary = slice(9, &[("a", 3, 1), ("b", 4, 2)]);
    let good = slice(4, &[("a", 3, 1), ("b", 4, 2)]);
    let flipped = slice(4, &[("a", 3, 1), ("b", 4, 666)]);
    let findings = compare(&primary, [rows(good), rows(flipped)]);
    assert_eq!(wrong(&findings), [("n3", "b", Cure::Replace)]);
    assert_eq!(findings.moving, 0);
}

#[test]
fn a_row_that_an_entry_on_its_way_changes_is_not_wrong() {
    let primary = slice(9, &[("a", 9, 5), ("b", 4, 2)]);
    let behind = slice(8, &[("a", 3, 1), ("b", 4, 2)]);
    let findings = compare(&primary, [rows(behind)]);
    assert_eq!((wrong(&findings), findings.moving), (vec![], 1));
    let ahead = slice(12, &[("a", 9, 5), ("b", 11, 3), ("c", 12, 4)]);
    let findings = compare(&primary, [rows(ahead)]);
    assert_eq!((wrong(&findings), findings.moving), (vec![], 2));
}

#[test]
fn an_entry_that_is_in_the_tables_and_not_in_the_row_was_lost() {
    let primary = slice(9, &[("a", 9, 5), ("b", 4, 2)]);
    let stale = slice(9, &[("a", 3, 1), ("b", 4, 2)]);
    assert_eq!(wrong(&compare(&primary, [rows(stale)])), [("n2", "a", Cure::Replace)]);
    let missing = slice(9, &[("b", 4, 2)]);
    assert_eq!(wrong(&compare(&primary, [rows(missing)])), [("n2", "a", Cure::Replace)]);
    let extra = slice(9, &[("a", 9, 5), ("b", 4, 2), ("c", 7, 1)]);
    assert_eq!(wrong(&compare(&primary, [rows(extra)])), [("n2", "c", Cure::Extra)]);
}

#[test]
fn the_primary_is_believed_unless_more_copies_agree_on_something_else() {
    let primary = slice(9, &[("a", 3, 666)]);
    let good = || rows(slice(9, &[("a", 3, 1)]));
    assert_eq!(wrong(&compare(&primary, [good()])), [("n2", "a", Cure::Replace)], "one to one");
    let both = compare(&primary, [good(), good()]);
    assert_eq!(wrong(&both), [("n2", "a", Cure::Outvoted), ("n3", "a", Cure::Outvoted)]);
    let with_one = compare(&primary, [good(), Said::Same]);
    assert_eq!(wrong(&with_one), [("n2", "a", Cure::Replace)]);
    let scattered = compare(&primary, [good(), rows(slice(9, &[("a", 3, 2)]))]);
    assert!(wrong(&scattered).iter().all(|(.., cure)| *cure == Cure::Replace), "no two agree");
}

/// The primary's row has a wrong byte, one copy has the good one, and the other has not saved it yet:
/// the good row must not be overwritten because its witness is late.
#[test]
fn nothing_is_replaced_while_a_copy_that_is_behind_may_outvote_the_primary() {
    let primary = slice(9, &[("a", 7, 666)]);
    let good = || rows(slice(9, &[("a", 7, 1)]));
    let behind = || rows(slice(6, &[("a", 3, 1)]));
    let findings = compare(&primary, [good(), behind()]);
    assert_eq!((wrong(&findings), findings.moving), (vec![], 2));
    let mut short = slice(9, &[]);
    short.upto = Some(entity("A"));
    let findings = compare(&primary, [good(), rows(short)]);
    assert_eq!((wrong(&findings), findings.moving), (vec![], 1));
    let with_one = compare(&primary, [good(), behind(), Said::Same]);
    assert_eq!(wrong(&with_one), [("n2", "a", Cure::Replace)], "it cannot be outvoted any more");
}

#[test]
fn a_row_that_no_entry_made_is_wrong_wherever_it_is() {
    let good = slice(9, &[("a", 3, 1)]);
    let rotten = slice(9, &[("a", 0, 0)]);
    assert_eq!(wrong(&compare(&good, [rows(rotten.clone())])), [("n2", "a", Cure::Replace)]);
    assert_eq!(wrong(&compare(&rotten, [rows(good)])), [("n2", "a", Cure::Outvoted)]);
}

#[test]
fn slices_are_compared_as_far_as_both_reach() {
    let mut primary = slice(9, &[("a", 1, 1), ("b", 2, 2)]);
    primary.upto = Some(entity("b"));
    let longer = slice(9, &[("a", 1, 1), ("b", 2, 2), ("c", 3, 3)]);
    assert_eq!(compare(&primary, [rows(longer)]), Findings::default());
    let mut shorter = slice(9, &[("a", 1, 1)]);
    shorter.upto = Some(entity("a"));
    assert_eq!(compare(&primary, [rows(shorter)]), Findings::default());
}

#[test]
fn a_digest_tells_rows_apart() {
    let base = slice(9, &[("a", 1, 1), ("b", 2, 2)]);
    let same = slice(5, &[("a", 1, 1), ("b", 2, 2)]);
    assert_eq!(base.digest(), same.digest(), "places are no part of it");
    assert!(base.is_in_order());
    assert!(!slice(9, &[("b", 2, 2), ("a", 1, 1)]).is_in_order());
    assert!(!slice(9, &[("a", 2, 2), ("a", 1, 1)]).is_in_order());
    let others: [&[(&str, u64, u64)]; 5] = [
        &[("a", 1, 1)],
        &[("a", 1, 1), ("b", 2, 3)],
        &[("a", 1, 1), ("b", 3, 2)],
        &[("ab", 1, 1), ("b", 2, 2)],
        &[],
    ];
    for other in others {
        assert_ne!(slice(9, other).digest(), base.digest(), "{other:?}");
    }
}

#[test]
fn a_question_is_told_apart_from_a_message_of_a_copy() {
    let what = Ask::Compare { after: None, upto: Some(entity("b")), digest: 7 };
    let question = Question { shard: ShardId(3), epoch: Epoch(4), what };
    let bytes = question.encode().unwrap();
    assert_eq!(Question::decode(&bytes).unwrap().unwrap(), question);
    assert!(Question::decode(&bytes[1..]).is_none());
    assert!(Question::decode(&bytes[..3]).unwrap().is_err());
    assert!(Question::decode(&[]).is_none());
}
