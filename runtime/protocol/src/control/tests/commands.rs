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
    (0_u8..14, 1..=NODES, 0_u8..2, 1_u64..5, 0..SHARDS, stale).prop_map(
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
            targets: vec![(shard, vec![name])],
        },
        8 | 9 => Command::Promote { shards: vec![(shard, expect, claim)] },
        10 => {
            let handoff = Handoff { to: name, disk: claim.disk, plan: expect.version + 1 };
            Command::BeginHandoff { shards: vec![(shard, expect, handoff)] }
        }
        11 => Command::CompleteHandoff { shard, expect, to: claim },
        12 => completion(state, shard).unwrap_or(Command::AbortHandoff { shard, expect }),
        _ => Command::AbortHandoff { shard, expect },
    }
}

proptest! {
    #![proptest_config(crate::properties::cases(400))]

    /// Whatever is proposed in whatever order: a refused command changes nothing, an accepted one
    /// keeps the invariants, and what may never happen does not.
    #[test]
    fn commands_keep_the_promises(
        draws in prop::collection::vec(any_draw(), 1..120),
        (standbys, min_insync) in prop::sample::select(vec![(0, 1), (1, 1), (1, 2), (2, 2)]),
    ) {
        let mut state = ClusterState::new();
        apply(&mut state, init(SHARDS, standbys, min_insync));
        let mut served: BTreeMap<(ShardId, Epoch), Claim> = BTreeMap::new();
        for draw in &draws {
            let before = state.clone();
            let result = state.apply(command_of(&before, draw));
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
                        || old.in_sync.get(&claim.node) == Some(&claim.disk)
                        || old.handoff.as_ref().is_some_and(|handoff| {
                            (&handoff.to, handoff.disk) == (&claim.node, claim.disk)
                        });
                    prop_assert!(had_it, "a primary holds what was acknowledged (I4)");
                }
                prop_assert!(old.primary.is_none() || new.primary.is_some(), "claims stay");
            }
        }
    }
}
