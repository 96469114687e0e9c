//! Random lives of a cluster under the director: whatever happens, it settles.

use proptest::prelude::*;

use super::commands::{Draw, any_copies, any_draw, command_of};
use super::*;

/// What really runs, beside what the cluster knows.
#[derive(Debug, Clone, Copy)]
struct Process {
    generation: u8,
    boot: u64,
    alive: bool,
}

struct World {
    state: ClusterState,
    processes: BTreeMap<u8, Process>,
    config: director::Config,
}

impl World {
    fn new(members: u8, init: Command, moves_max: usize) -> Self {
        let mut state = ClusterState::new();
        apply(&mut state, init);
        let config = director::Config { moves_max, members_min: 0 };
        let mut world = Self { state, processes: BTreeMap::new(), config };
        for at in 1..=members {
            world.start(at, false);
        }
        world
    }

    /// Starts a node, or starts it again; with an empty data directory when `wiped`.
    fn start(&mut self, at: u8, wiped: bool) {
        let fresh = Process { generation: 0, boot: 0, alive: true };
        let process = self.processes.entry(at).or_insert(fresh);
        process.alive = true;
        process.boot += 1;
        process.generation += u8::from(wiped && process.boot > 1);
        self.register(at);
    }

    /// A process registers, as it does until it is a member; it may be refused for now.
    fn register(&mut self, at: u8) {
        let process = self.processes[&at];
        if process.alive {
            let command = register(at, disk(at, process.generation), process.boot);
            let refused = self.state.apply(command).err();
            assert!(refused.is_none_or(|why| matches!(why, ProposeRefused::NameInUse { .. })));
        }
    }

    fn view(&self) -> View {
        let judge = |(name, member): (&NodeId, &Member)| {
            let claim = Claim { node: name.clone(), disk: member.disk, boot: member.boot };
            let verdict = if self.runs(&claim) { Verdict::Alive } else { Verdict::Dead };
            (name.clone(), (member.boot, verdict))
        };
        self.state.members.iter().map(judge).collect()
    }

    /// Whether this very start of a node runs.
    fn runs(&self, claim: &Claim) -> bool {
        self.processes.iter().any(|(at, process)| {
            process.alive
                && node(*at) == claim.node
                && disk(*at, process.generation) == claim.disk
                && BootId(process.boot) == claim.boot
        })
    }

    /// One round of the director. A plan is never refused by the state that it was made for.
    fn direct(&mut self) -> usize {
        let commands = plan(&self.state, &self.view(), self.config);
        let count = commands.len();
        for command in commands {
            apply(&mut self.state, command);
        }
        let moving = self.state.shards.iter().filter(|config| config.handoff.is_some()).count();
        assert!(moving <= self.config.moves_max, "bounded moves");
        count
    }

    fn complete(&mut self, shard: u32) -> bool {
        let command = completion(&self.state, ShardId(shard));
        command.is_some_and(|command| self.state.apply(command).is_ok())
    }

    /// The primary of a shard brings in sync whom it can reach, and lets the others go.
    fn bring_in_sync(&mut self, shard: u32) {
        let command = proposal(&self.state, ShardId(shard), |claim| self.runs(claim));
        if let Some(command) = command {
            apply(&mut self.state, command);
        }
    }

    fn step(&mut self, draw: &Draw) {
        let name = node(draw.node);
        match draw.what {
            0 => self.start(draw.node, draw.stale),
            1 => {
                if let Some(process) = self.processes.get_mut(&draw.node) {
                    process.alive = false;
                }
            }
            // refusals of an operator's commands are answers to the operator
            2 => drop(self.state.apply(Command::Drain { node: name })),
            3 => drop(self.state.apply(Command::Undrain { node: name })),
            4 => {
                let boot = self.state.members.get(&name).map_or(BootId(0), |member| member.boot);
                drop(self.state.apply(Command::SetDown { node: name, boot }));
            }
            5 => {
                let command = command_of(&self.state, &Draw { what: 13, ..draw.clone() });
                drop(self.state.apply(command));
            }
            6..=8 => drop(self.complete(draw.shard)),
            9..=11 => self.bring_in_sync(draw.shard),
            _ => drop(self.direct()),
        }
    }

    /// Faults end: everyone runs and registers, sources end their moves. Returns the moves made
    /// until the director has nothing more to propose.
    fn heal(&mut self) -> u32 {
        let mut moved = 0;
        let members = |world: &Self| -> Vec<u8> { world.processes.keys().copied().collect() };
        for at in members(self) {
            if !self.processes[&at].alive {
                self.start(at, false);
            }
        }
        for _ in 0..500 {
            let before = self.state.version;
            let planned = self.direct();
            for at in members(self) {
                // a node that left for good has been told so and stopped
                let left = !self.state.members.contains_key(&node(at));
                if left && self.processes[&at].boot > 0 && planned == 0 {
                    self.processes.remove(&at);
                } else {
                    self.register(at);
                }
            }
            let shards = u32::try_from(self.state.shards.len()).unwrap();
            for shard in 0..shards {
                self.bring_in_sync(shard);
            }
            let completed = (0..shards).filter(|&shard| self.complete(shard)).count();
            moved += u32::try_from(completed).unwrap();
            if self.state.version == before && self.settled() {
                return moved;
            }
        }
        panic!("does not settle: {:#?}", plan(&self.state, &self.view(), self.config));
    }

    /// Every shard is where it is wanted, except what was on lost disks, and what never had as many
    /// copies as it must start with.
    fn settled(&self) -> bool {
        let all_there = self.view().values().all(|(_, verdict)| *verdict == Verdict::Alive);
        let quiet = |config: &ShardConfig| match self.state.health(config) {
            Health::DiskLost => config.handoff.is_none() && self.is_lost(config),
            Health::Served => {
                let primary = config.primary.as_ref().map(|claim| &claim.node);
                config.handoff.is_none() && primary == config.targets.first()
            }
            Health::Unassigned => self.is_short(),
            Health::Restarted | Health::Down => false,
        };
        all_there && self.state.shards.iter().all(quiet)
    }

    /// Whether the disk of every copy was lost.
    fn is_lost(&self, config: &ShardConfig) -> bool {
        let is_kept = |(name, disk): (&NodeId, &DiskId)| self.state.members[name].disk == *disk;
        !config.in_sync.iter().any(is_kept)
    }

    /// Whether too few members stay for the least in-sync set.
    fn is_short(&self) -> bool {
        let members = self.state.members.len() - self.state.draining.len();
        members < usize::from(self.state.min_insync)
    }

    /// Every served shard has as many copies as there are members for, and no others.
    fn is_whole(&self) -> bool {
        let whole = |config: &&ShardConfig| {
            let wanted = config.targets.iter().filter_map(|name| self.state.claim_of(name));
            config.in_sync == wanted.map(|claim| (claim.node, claim.disk)).collect()
        };
        let served = |config: &&ShardConfig| self.state.health(config) == Health::Served;
        self.is_short() || self.state.shards.iter().filter(served).all(|config| whole(&config))
    }
}

proptest! {
    #![proptest_config(crate::properties::cases(150))]

    /// Members come, die, restart, lose their disks, drain; reports are false; moves end or do
    /// not; primaries bring others in sync or do not. Once that is over, the director brings every
    /// shard to its target, with few moves, and then rests.
    #[test]
    fn the_director_settles_every_cluster(
        members in 1_u8..5, shards in 1_u32..24, moves_max in 1_usize..9,
        (standbys, min_insync) in any_copies(),
        draws in prop::collection::vec(any_draw(), 0..80),
    ) {
        let mut world = World::new(members, init(shards, standbys, min_insync), moves_max);
        for draw in &draws {
            world.step(&Draw { shard: draw.shard % shards, ..draw.clone() });
        }
        let moved = world.heal();
        prop_assert!(moved <= 2 * shards + 8, "{} moves of {} shards", moved, shards);
        prop_assert_eq!(world.direct(), 0);
        prop_assert!(world.is_whole(), "{:#?}", world.state);
        let lost = world.state.shards.iter()
            .filter(|config| world.state.health(config) == Health::DiskLost);
        let holders: BTreeSet<_> =
            lost.flat_map(|config| config.in_sync.keys()).cloned().collect();
        let rest = world.is_short()
            || world.state.draining.iter().all(|node| holders.contains(node));
        prop_assert!(rest, "only a member with lost claims drains for ever");
    }

    /// Whoever dies, while the others are up and every shard is whole: each of its shards has
    /// another primary after one plan, others replace it where they can, and all is whole again
    /// when it comes back with another disk.
    #[test]
    fn a_whole_cluster_survives_the_loss_of_any_disk(
        members in 2_u8..5, shards in 1_u32..24, moves_max in 1_usize..9,
        (standbys, min_insync) in any_copies(),
        deaths in prop::collection::vec((1_u8..5, any::<bool>()), 1..6),
    ) {
        let mut world = World::new(members, init(shards, standbys.max(1), min_insync), moves_max);
        world.heal();
        for (at, settles) in deaths {
            let at = (at - 1) % members + 1;
            world.processes.get_mut(&at).unwrap().alive = false;
            world.direct();
            let served = |config: &ShardConfig| world.state.health(config) == Health::Served;
            prop_assert!(world.state.shards.iter().all(served));
            prop_assert!(primaries(&world.state).iter().all(|name| **name != node(at)));
            let rounds = if settles { 40 } else { 0 };
            for _ in 0..rounds {
                world.direct();
                (0..shards).for_each(|shard| world.bring_in_sync(shard));
            }
            let replaced = settles && members > min_insync;
            prop_assert!(!replaced || world.state.held_by(&node(at)) == 0, "others have its part");
            world.start(at, true);
            world.heal();
            prop_assert!(world.is_whole(), "{:#?}", world.state);
        }
    }
}
