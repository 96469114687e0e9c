//! What nodes do that start, alone and beside others.

use proptest::prelude::*;

use super::*;
use crate::control::{Grouping, GroupingDigest, Member};

const CLUSTER: ClusterId = ClusterId::from_bytes([1; 16]);
const OTHER: ClusterId = ClusterId::from_bytes([2; 16]);

fn node(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

/// A fresh candidate that knows these names; its disk is made of its name.
fn fresh(name: &str, expect: u32, known: &[&str]) -> Candidate {
    let mut disk = [0; 16];
    disk[..name.len()].copy_from_slice(name.as_bytes());
    Candidate {
        node: node(name),
        disk: DiskId::from_bytes(disk),
        boot: BootId(1),
        cluster: None,
        peer_addr: format!("{name}:7000"),
        expect,
        known: known.iter().map(|name| node(name)).collect(),
        grouping: Grouping::new(),
    }
}

fn member(name: &str, cluster: ClusterId) -> Candidate {
    Candidate { cluster: Some(cluster), ..fresh(name, 3, &[]) }
}

fn three() -> [Candidate; 3] {
    ["n1", "n2", "n3"].map(|name| fresh(name, 3, &["n1", "n2", "n3"]))
}

#[test]
fn what_is_larger_than_any_node_is_is_refused() {
    let fine = fresh("n1", 3, &["n1", "n2"]);
    assert_eq!(fine.check(), Ok(()));
    let long_addr = Candidate { peer_addr: "x".repeat(10_000), ..fine.clone() };
    let crowd = Candidate { known: vec![node("n1"); 1_000_000], ..fine.clone() };
    let long_kind = Grouping::from([("x".repeat(10_000), GroupingDigest(1))]);
    let long_kind = Candidate { grouping: long_kind, ..fine.clone() };
    let kinds = (0..100_000).map(|kind| (format!("k{kind}"), GroupingDigest(1)));
    let kinds = Candidate { grouping: kinds.collect(), ..fine };
    for (candidate, what) in [
        (long_addr, "bytes of address"),
        (crowd, "known nodes"),
        (long_kind, "bytes of a kind's name"),
        (kinds, "kinds"),
    ] {
        assert_eq!(candidate.check().unwrap_err().what, what);
    }
}

#[test]
fn the_lowest_of_the_expected_nodes_forms_the_cluster() {
    let all = three();
    assert_eq!(bootstrap(&all[0], &all), Ok(Bootstrap::Form));
    let waits = Bootstrap::Wait(WaitingFor::Lowest { node: node("n1") });
    assert_eq!(bootstrap(&all[1], &all), Ok(waits.clone()));
    assert_eq!(bootstrap(&all[2], &all), Ok(waits));
}

#[test]
fn nobody_forms_while_somebody_is_missing_or_knows_less() {
    let [own, second, third] = three();
    let waits = Bootstrap::Wait(WaitingFor::Nodes { heard: 2, expect: 3 });
    assert_eq!(bootstrap(&own, std::slice::from_ref(&second)), Ok(waits));
    let behind = fresh("n3", 3, &["n2", "n3"]);
    let waits = Bootstrap::Wait(WaitingFor::SameView { node: node("n3") });
    assert_eq!(bootstrap(&own, &[second, behind]), Ok(waits));
    let [_, second, _] = three();
    let unsure = fresh("n1", 3, &["n1", "n2"]);
    let waits = Bootstrap::Wait(WaitingFor::SameView { node: node("n1") });
    assert_eq!(bootstrap(&unsure, &[second, third]), Ok(waits));
}

#[test]
fn one_node_that_expects_itself_forms_at_once() {
    assert_eq!(bootstrap(&fresh("n1", 1, &["n1"]), &[]), Ok(Bootstrap::Form));
}

#[test]
fn a_node_that_expects_nobody_waits_for_a_member() {
    let all = [fresh("n1", 0, &["n1"]), fresh("n2", 0, &["n2"])];
    assert_eq!(bootstrap(&all[0], &all), Ok(Bootstrap::Wait(WaitingFor::Member)));
}

#[test]
fn whoever_hears_a_member_joins_and_never_forms() {
    let [own, second, _] = three();
    let heard = [second, member("n9", CLUSTER), member("n3", CLUSTER)];
    let via = vec!["n3:7000".to_owned(), "n9:7000".to_owned()];
    assert_eq!(bootstrap(&own, &heard), Ok(Bootstrap::Join { cluster: CLUSTER, via }));
}

#[test]
fn data_of_another_cluster_is_refused() {
    let own = member("n1", OTHER);
    let error = BootstrapError::OtherCluster { own: OTHER, node: node("n2"), other: CLUSTER };
    assert_eq!(bootstrap(&own, &[member("n2", CLUSTER)]), Err(error));
    let error = BootstrapError::TwoClusters { one: CLUSTER, other: OTHER };
    let heard = [member("n2", CLUSTER), member("n3", OTHER)];
    assert_eq!(bootstrap(&fresh("n1", 3, &[]), &heard), Err(error));
}

#[test]
fn a_member_resumes_alone_or_among_its_own() {
    let own = member("n1", CLUSTER);
    let resumes = Ok(Bootstrap::Resume { cluster: CLUSTER });
    assert_eq!(bootstrap(&own, &[]), resumes);
    assert_eq!(bootstrap(&own, &[fresh("n2", 3, &[]), member("n3", CLUSTER)]), resumes);
}

#[test]
fn contradictions_are_errors_and_not_waited_for() {
    let [own, second, third] = three();
    let fourth = fresh("n4", 3, &[]);
    let heard = [second.clone(), third, fourth];
    let error = BootstrapError::TooMany { heard: 4, expect: 3 };
    assert_eq!(bootstrap(&own, &heard), Err(error));

    let namesake = Candidate { disk: DiskId::from_bytes([9; 16]), ..own.clone() };
    let error = BootstrapError::NameInUse { node: node("n1") };
    assert_eq!(bootstrap(&own, &[namesake]), Err(error));

    let other = fresh("n2", 5, &[]);
    let error = BootstrapError::ExpectDiffers { own: 3, node: node("n2"), theirs: 5 };
    assert_eq!(bootstrap(&own, &[other]), Err(error));

    let grouped = |digest| [("order".to_owned(), GroupingDigest(digest))].into();
    let own = Candidate { grouping: grouped(1), ..own };
    let second = Candidate { grouping: grouped(2), ..second };
    let error = BootstrapError::Grouping { node: node("n2"), kind: "order".to_owned() };
    assert_eq!(bootstrap(&own, &[second]), Err(error));
}

fn cluster_of_one() -> ClusterState {
    let member = Member {
        disk: fresh("n1", 3, &[]).disk,
        boot: BootId(5),
        peer_addr: "n1:7000".to_owned(),
        http_addr: String::new(),
        zone: String::new(),
        weight: 1,
        lanes: 1,
        state: MemberState::Up,
        wire_max: 3,
    };
    ClusterState {
        cluster: Some(CLUSTER),
        grouping: [("order".to_owned(), GroupingDigest(1))].into(),
        members: [(node("n1"), member)].into(),
        ..ClusterState::new()
    }
}

fn check(candidate: &Candidate, wire: Wire) -> Result<(), JoinRefused> {
    check_join(&cluster_of_one(), candidate, wire)
}

#[test]
fn a_fresh_node_and_a_member_of_this_cluster_may_join() {
    assert_eq!(check(&fresh("n2", 3, &[]), Wire::of(3)), Ok(()));
    assert_eq!(check(&member("n2", CLUSTER), Wire::of(4)), Ok(()));
    let back = Candidate { boot: BootId(6), ..member("n1", CLUSTER) };
    assert_eq!(check(&back, Wire::of(9)), Ok(()), "alone, with itself upgraded");
}

#[test]
fn a_join_is_refused_by_what_is_wrong() {
    let joining = fresh("n2", 3, &[]);
    let refused = check_join(&ClusterState::new(), &joining, Wire::of(3));
    assert_eq!(refused, Err(JoinRefused::NoCluster));

    let refused = JoinRefused::OtherCluster { ours: CLUSTER, theirs: OTHER };
    assert_eq!(check(&member("n2", OTHER), Wire::of(3)), Err(refused));

    let namesake = Candidate { disk: DiskId::from_bytes([9; 16]), ..fresh("n1", 3, &[]) };
    let refused = JoinRefused::NameInUse { node: node("n1") };
    assert_eq!(check(&namesake, Wire::of(3)), Err(refused));
    let old = Candidate { boot: BootId(4), ..fresh("n1", 3, &[]) };
    let refused = JoinRefused::OldBoot { node: node("n1") };
    assert_eq!(check(&old, Wire::of(3)), Err(refused));

    let grouping = [("order".to_owned(), GroupingDigest(2))].into();
    let refused = JoinRefused::Grouping { kind: "order".to_owned() };
    assert_eq!(check(&Candidate { grouping, ..joining.clone() }, Wire::of(3)), Err(refused));

    let refused = JoinRefused::Wire { member: node("n1"), theirs: 3, min: 4, max: 5 };
    assert_eq!(check(&joining, Wire::of(5)), Err(refused));
    assert!(check(&joining, Wire { min: 1, max: 1 }).is_err());
}

#[test]
fn a_node_with_a_new_disk_may_come_back_once_it_is_down() {
    let mut state = cluster_of_one();
    let wiped = Candidate { disk: DiskId::from_bytes([9; 16]), ..fresh("n1", 3, &[]) };
    assert!(check_join(&state, &wiped, Wire::of(3)).is_err());
    state.members.get_mut(&node("n1")).unwrap().state = MemberState::Down;
    assert_eq!(check_join(&state, &wiped, Wire::of(3)), Ok(()));
}

proptest! {
    /// Whoever hears whom, and however late: of the nodes of one configuration at most one
    /// thinks that it forms the cluster.
    #[test]
    fn at_most_one_node_forms(
        expect in 1_u32..5, count in 1_usize..7,
        hears in prop::collection::vec(any::<u64>(), 7), views in prop::collection::vec(any::<u64>(), 7),
    ) {
        let name = |at: usize| format!("n{at}");
        let known = |seer: usize, mask: u64| -> Vec<NodeId> {
            let seen = (0..count).filter(|at| *at == seer || mask >> at & 1 == 1);
            seen.map(|at| node(&name(at))).collect()
        };
        // a view that was told may be older than what its owner hears by now, not newer
        let told: Vec<Candidate> = (0..count).map(|at| Candidate {
            known: known(at, hears[at] & views[at]),
            ..fresh(&name(at), expect, &[])
        }).collect();
        let forms = |at: usize| {
            let heard: Vec<_> = (0..count)
                .filter(|other| hears[at] >> other & 1 == 1)
                .map(|other| told[other].clone())
                .collect();
            let own = Candidate { known: known(at, hears[at]), ..told[at].clone() };
            bootstrap(&own, &heard) == Ok(Bootstrap::Form)
        };
        // two disjoint sets of `expect` nodes are two configurations: not this promise
        if count < 2 * expect as usize {
            prop_assert!((0..count).filter(|&at| forms(at)).count() <= 1);
        }
    }
}
