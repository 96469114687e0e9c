//! The directory: identity, missing files, formats.

use super::*;

#[test]
fn a_directory_keeps_its_identity_and_every_start_is_later() {
    let dir = tempfile::tempdir().unwrap();
    let config = config::Config::default().storage;
    let name = NodeId::new("n1").unwrap();
    let cluster = ClusterId::from_bytes([4; 16]);
    let first = start(open(&config, dir.path(), Some(&name)).unwrap());
    let before = first.storage.identity();
    first.storage.set_cluster(cluster).unwrap();
    let other = first.storage.set_cluster(ClusterId::from_bytes([5; 16])).unwrap_err();
    assert_eq!(other.code(), "MS-1203");
    assert_eq!(open(&config, dir.path(), None).unwrap_err().code(), "MS-1102");
    first.storage.close();

    let again = open(&config, dir.path(), None).unwrap().identity;
    assert_eq!((again.node, again.disk, again.cluster), (name, before.disk, Some(cluster)));
    assert!(again.boot > before.boot);
    let other = NodeId::new("n2").unwrap();
    assert_eq!(open(&config, dir.path(), Some(&other)).unwrap_err().code(), "MS-1103");
}

#[test]
fn a_missing_file_is_noticed_and_not_made_anew() {
    for file in [JOURNAL_FILE, STATE_FILE] {
        let rig = Rig::new();
        rig.open().commit(1, one(0, 1, "a", "1"));
        rig.disk.remove(file);
        for _ in 0..2 {
            assert_eq!(rig.recover().unwrap_err().code(), "MS-1105");
        }
    }
    let rig = Rig::new();
    rig.open().commit(1, one(0, 1, "a", "1"));
    std::fs::remove_file(rig.dir.path().join("identity")).unwrap();
    assert_eq!(rig.recover().unwrap_err().code(), "MS-1105");
}

#[test]
fn a_file_of_a_newer_build_is_refused() {
    let rig = Rig::new();
    drop(rig.open());
    let database = rig.disk.open(STATE_FILE, 1 << 20).unwrap();
    let txn = database.begin_write().unwrap();
    txn.open_table(ABOUT).unwrap().insert(ABOUT_FORMAT, tables::format(STATE_FILE) + 1).unwrap();
    txn.commit().unwrap();
    drop(database);
    assert_eq!(rig.recover().unwrap_err().code(), "MS-1106");
}
