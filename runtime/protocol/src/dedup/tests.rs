//! The table of records and the keys in flight, as facts and against a map.

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::entry::StoredReply;
use crate::id::{Key, KindId};

fn entity(n: u32) -> EntityId {
    EntityId { kind: KindId(1), key: Key::new(&format!("e{n}")).unwrap() }
}

fn key(n: u32) -> IdempotencyKey {
    IdempotencyKey::new(&format!("k{n}")).unwrap()
}

fn kept(n: u32, seconds: u64) -> Kept {
    let reply = StoredReply::Value(Bytes::from(vec![0; 10]));
    let (method, version) = (MethodId(1), Seq(u64::from(n)));
    let record = DedupRecord { key: key(n), method, payload_hash: 5, reply, version };
    Kept { entity: entity(n % 3), log_time: LogTime(seconds * 1000), record }
}

fn find(table: &Table, n: u32, payload_hash: u64) -> Found<'_> {
    table.find(&entity(n % 3), keyed(&key(n), payload_hash))
}

fn keyed(key: &IdempotencyKey, payload_hash: u64) -> Keyed<'_> {
    Keyed { key, method: MethodId(1), payload_hash, if_version: None }
}

fn table(bytes_max: u64) -> Table {
    let config = Config { retention: Duration::from_secs(60), bytes_max };
    Table::new(config, 9, Vec::new(), LogTime(0))
}

#[test]
fn the_same_call_is_found_and_another_one_is_a_conflict() {
    let mut table = table(1 << 20);
    table.insert(kept(1, 1));
    assert!(matches!(find(&table, 1, 5), Found::Same(record) if record.version == Seq(1)));
    assert_eq!(find(&table, 1, 6), Found::Conflict);
    assert_eq!(find(&table, 2, 5), Found::Absent);
    let key = key(1);
    let elsewhere = keyed(&key, 5);
    assert_eq!(table.find(&entity(2), elsewhere), Found::Absent, "a key belongs to one entity");
    let method = Keyed { method: MethodId(2), ..elsewhere };
    assert_eq!(table.find(&entity(1), method), Found::Conflict);
    let condition = Keyed { if_version: Some(Seq(7)), ..elsewhere };
    assert!(matches!(table.find(&entity(1), condition), Found::Same(_)), "it took effect");
}

#[test]
fn records_are_kept_for_their_retention_of_log_time() {
    let mut table = table(1 << 20);
    table.insert(kept(1, 100));
    table.expire(LogTime(160_000));
    assert_eq!(table.len(), 1);
    table.expire(LogTime(160_001));
    assert!(table.is_empty());
    assert_eq!((table.bytes(), find(&table, 1, 5)), (0, Found::Absent));
}

#[test]
fn what_expired_is_told_once_and_a_key_in_use_again_is_not() {
    let config = Config { retention: Duration::from_secs(60), bytes_max: 1 << 20 };
    let records = vec![kept(1, 1), kept(2, 1), kept(2, 100), kept(3, 50)];
    let mut table = Table::new(config, 1, records, LogTime(100_000));
    assert_eq!(table.take_expired(), [(entity(1), key(1))], "key 2 has a younger record");
    table.expire(LogTime(120_000));
    let expired = table.take_expired();
    assert_eq!(expired, [(entity(0), key(3))]);
    assert_eq!(table.take_expired(), []);
    table.put_back_expired(expired);
    assert_eq!(table.take_expired(), [(entity(0), key(3))]);
}

#[test]
fn a_full_budget_refuses_and_keeps_everything() {
    let mut table = table(3 * RECORD_OVERHEAD);
    table.insert(kept(1, 1));
    assert!(table.has_room(1), "one kept and one in flight");
    assert!(!table.has_room(2));
    table.insert(kept(2, 1));
    table.insert(kept(3, 1));
    assert!(!table.has_room(0));
    assert_eq!(table.len(), 3);
}

#[test]
fn recovered_records_come_in_any_order_and_the_old_ones_are_dropped() {
    let config = Config { retention: Duration::from_secs(60), bytes_max: 1 << 20 };
    let records = vec![kept(3, 30), kept(1, 10), kept(4, 1), kept(2, 20), kept(1, 10)];
    let mut table = Table::new(config, 1, records, LogTime(62_000));
    let order: Vec<_> = table.iter().map(|kept| kept.record.key.clone()).collect();
    assert_eq!(order, [key(1), key(2), key(3)]);
    table.expire(LogTime(75_000));
    assert_eq!(table.len(), 2);
}

#[test]
fn a_second_call_joins_the_first() {
    let mut flights = Flights::default();
    let key = key(1);
    let keyed = keyed(&key, 5);
    assert_eq!(flights.find(0, keyed), Flying::Absent);
    flights.begin(0, keyed);
    assert_eq!(flights.find(0, keyed), Flying::Same);
    flights.join(0, &key, 'b');
    flights.join(0, &key, 'c');
    assert_eq!(flights.find(0, Keyed { payload_hash: 6, ..keyed }), Flying::Conflict);
    let condition = Keyed { if_version: Some(Seq(7)), ..keyed };
    assert_eq!(flights.find(0, condition), Flying::Conflict, "it may go another way");
    assert_eq!(flights.find(1, keyed), Flying::Absent, "another entity");
    assert_eq!(flights.take_joined(0, &key), Some('b'));
    assert_eq!(flights.end(0, &key), ['c']);
    assert!(flights.is_empty() && flights.joined() == 0);
}

proptest! {
    #[test]
    fn the_table_is_a_map_that_forgets_by_age(
        ops in prop::collection::vec((0..30_u32, 0..20_u64), 0..300),
    ) {
        let mut table = table(u64::MAX);
        let mut model: BTreeMap<u32, u64> = BTreeMap::new();
        let mut seconds = 0;
        for (n, pass) in ops {
            seconds += pass;
            table.expire(LogTime(seconds * 1000));
            model.retain(|_, at| seconds - *at <= 60);
            if model.insert(n, seconds).is_none() {
                table.insert(kept(n, seconds));
            } else {
                model.insert(n, table.iter().find(|kept| kept.record.key == key(n))
                    .map(|kept| kept.log_time.0 / 1000).unwrap());
            }
            for n in 0..30 {
                prop_assert_eq!(find(&table, n, 5) != Found::Absent, model.contains_key(&n));
            }
            prop_assert_eq!(table.bytes(), table.iter().map(Kept::bytes).sum::<u64>());
        }
    }
}
