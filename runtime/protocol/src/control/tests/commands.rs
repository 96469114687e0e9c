//! Random commands: whatever comes, the promises hold.

use proptest::prelude::*;

use super::*;

/// One drawn step: what to propose, about whom, with which expectation.
#[derive(Debug, Clone)]
pub(super) struct Draw {
    pub(super) what: u8,
    pub(super) node: u8,
    pub(super) generation: u8,
    pub(super) boot: u64,
    pub(super) shard: u32,
    pub(super) stale: bool,
}

const NODES: u8 = 4;
const SHARDS: u32 = 6;

pub(super) fn any_draw() -> impl Strategy<Value = Draw> {
    let stale = prop::bool::weighted(0.1);
    (0_u8..17, 1..=NODES, 0_u8..2, 1_u64..5, 0..SHARDS, stale).prop_map(
        |(what, node, generation, boot, shard, stale)| Draw {
            what,
            node,
            generation,
            boot,
            shard,
            stale,
        },
    )
}

/// Standbys, and the least in-sync set.
pub(super) fn any_copies() -> impl Strategy<Value = (u8, u8)> {
    prop::sample::select(vec![(0, 1), (1, 1), (1, 2), (2, 1), (2, 2)])
}

/// The command of a draw, mostly one that fits the state.
pub(super) fn command_of(state: &ClusterState, draw: &Draw) -> Command {
    let (name, shard) = (node(draw.node), ShardId(draw.shard));
    let config = state.shard(shard).cloned().unwrap_or_else(ShardConfig::fresh);
    let mut expect = config.expect();
    expect.version += u64::from(draw.stale);
    let any_disk = disk(draw.node, draw.generation);
    let known = state.members.get(&name).map_or(BootId(draw.boot), |member| member.boot);
    let claim = state.claim_of(&name).filter(|_| !draw.stale).unwrap_or_else(|| Claim {
        node: name.clone(),
        disk: any_disk,
        boot: BootId(draw.boot),
    });
    match draw.what {
        0..=2 => register(draw.node, any_disk, draw.boot),
        3 => Command::SetDown { node: name, boot: known },
        4 => Command::Drain { node: name },
        5 => Command::Undrain { node: name },
        6 => Command::Leave { node: name },
        7 => Command::SetTargets {
            from_version: state.version - u64::from(draw.stale),
            targets: vec![(shard, targets_from(state, draw.node))],
        },
        8 | 9 => Command::Promote { shards: vec![(shard, expect, claim)] },
        10 => {
            let handoff = Handoff { to: name, disk: claim.disk, plan: expect.version + 1 };
            Command::BeginHandoff { shards: vec![(shard, expect, handoff)] }
        }
        11 => Command::CompleteHandoff { shard, expect, to: claim },
        12 => completion(state, shard).unwrap_or(Command::AbortHandoff { shard, expect }),
        13 => Command::AbortHandoff { shard, expect },
        14 => proposal(state, shard, |_| true).unwrap_or_else(|| proposal_of(&config, draw, claim)),
        _ => proposal_of(&config, draw, claim),
    }
}

/// A node, and as many members after it as a shard wants copies.
fn targets_from(state: &ClusterState, first: u8) -> Vec<NodeId> {
    let others = (first..first + NODES - 1).map(|at| node(at % NODES + 1));
    let members = others.filter(|name| state.members.contains_key(name));
    std::iter::once(node(first)).chain(members.take(usize::from(state.standbys))).collect()
}

/// A proposal of an in-sync set in which one node is changed: it is new, it goes, or both.
fn proposal_of(config: &ShardConfig, draw: &Draw, claim: Claim) -> Command {
    let mut in_sync = config.in_sync.clone();
    let had = in_sync.remove(&claim.node) == Some(claim.disk);
    if !had || draw.generation > 0 {
        in_sync.insert(claim.node.clone(), claim.disk);
    }
    let mut expect = config.expect();
    expect.version += u64::from(draw.stale);
    let from = config.primary.clone().unwrap_or(claim);
    Command::ProposeInSync { shard: ShardId(draw.shard), expect, from, in_sync }
}

/// What joined a set can hold a copy, and what is left of one that lost a member is enough.
fn check_in_sync(
    state: &ClusterState,
    old: &ShardConfig,
    new: &ShardConfig,
) -> Result<(), TestCaseError> {
    let is_there = |(node, disk): &(&NodeId, &DiskId)| state.members[*node].disk == **disk;
    let joined = new.in_sync.iter().filter(|(node, disk)| !old.is_in_sync(node, **disk));
    for (node, disk) in joined {
        prop_assert!(is_there(&(node, disk)), "under its registered disk");
        prop_assert_ne!(state.members[node].state, MemberState::Down);
    }
    let lost = old.in_sync.iter().any(|(node, disk)| !new.is_in_sync(node, *disk));
    let left = new.in_sync.iter().filter(is_there).count();
    prop_assert!(!lost || left >= usize::from(state.min_insync), "enough remain (I4)");
    Ok(())
}

proptest! {
    #![proptest_config(crate::properties::cases(400))]

    /// Whatever is proposed in whatever order: a refused command changes nothing, an accepted one
    /// keeps the invariants, and what may never happen does not.
    #[test]
    fn commands_keep_the_promises(
        draws in prop::collection::vec(any_draw(), 1..120),
        (standbys, min_insync) in any_copies(),
    ) {
        let mut state = ClusterState::new();
        apply(&mut state, init(SHARDS, standbys, min_insync));
        let mut served: BTreeMap<(ShardId, Epoch), Claim> = BTreeMap::new();
        for draw in &draws {
            let before = state.clone();
            let command = command_of(&before, draw);
            let result = state.apply(command.clone());
            prop_assert_eq!(state.check_invariants(), Ok(()));
            let Ok(applied) = result else {
                prop_assert_eq!(&state, &before, "a refused command changes nothing");
                continue;
            };
            prop_assert_eq!(applied.version, state.version);
            prop_assert_eq!(state.version, before.version + u64::from(state != before));
            for ((shard, old), new) in before.shards().zip(&state.shards) {
                prop_assert!(new.epoch >= old.epoch, "epochs never decrease (I3)");
                prop_assert_eq!(new.version, old.version + u64::from(new != old));
                if new.primary != old.primary {
                    prop_assert_eq!(new.epoch.0, old.epoch.0 + 1, "a new primary, a new epoch");
                }
                if let Some(claim) = &new.primary {
                    let first = served.entry((shard, new.epoch)).or_insert_with(|| claim.clone());
                    prop_assert_eq!(&*first, claim, "one primary per epoch (I5)");
                    let had_it = old.primary.is_none()
                        || old.is_in_sync(&claim.node, claim.disk)
                        || standbys == 0 && old.handoff.as_ref().is_some_and(|handoff| {
                            (&handoff.to, handoff.disk) == (&claim.node, claim.disk)
                        });
                    prop_assert!(had_it, "a primary holds what was acknowledged (I4)");
                }
                prop_assert!(old.primary.is_none() || new.primary.is_some(), "claims stay");
                let proposed = matches!(command, Command::ProposeInSync { .. });
                let may_differ = proposed || old.primary.is_none() || standbys == 0;
                prop_assert!(may_differ || new.in_sync == old.in_sync, "the primary's to change");
                check_in_sync(&state, old, new)?;
            }
        }
    }
}
