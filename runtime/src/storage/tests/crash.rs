//! Power loss at any moment: nothing that was told durable is lost, nothing is there by halves.
//!
//! Each seed drives several lives of one disk. A life appends commands of several shards, each
//! batch touching two of them, checkpoints some of what is durable, and ends with the power, now and
//! then after a failed sync or on a full disk. The next life must find, for each shard, a whole
//! prefix of what was appended that holds all that was told durable.

use std::collections::BTreeMap;

use super::*;

const SHARDS: u32 = 4;
const ENTITIES_EACH: u64 = 5;

/// What one shard was told to hold: entry `n` is at `n - 1`.
#[derive(Default)]
struct Shard {
    entries: Vec<(String, String)>,
    /// The epoch that wrote each entry.
    epochs: Vec<u64>,
    /// The last entry that was told durable.
    told: u64,
    /// The last entry that checkpoints cover.
    applied: u64,
    epoch: u64,
}

struct Model {
    random: fastrand::Rng,
    shards: BTreeMap<u32, Shard>,
    /// Appended and not told yet: the ticket, and the last entry of each shard it touches.
    waiting: BTreeMap<u64, Vec<(u32, u64)>>,
    ticket: u64,
}

impl Model {
    fn new(seed: u64) -> Self {
        let shards = (0..SHARDS).map(|id| (id, Shard::default())).collect();
        let random = fastrand::Rng::with_seed(seed);
        Self { random, shards, waiting: BTreeMap::new(), ticket: 0 }
    }

    fn append(&mut self, running: &Running) {
        let first = self.random.u32(0..SHARDS);
        let second = (first + self.random.u32(1..SHARDS)) % SHARDS;
        let mut touched = Vec::new();
        let mut segments = Vec::new();
        for id in [first, second] {
            let count = self.random.u64(1..4);
            let shard = self.shards.get_mut(&id).unwrap();
            let mut entries = Vec::new();
            for _ in 0..count {
                let seq = shard.entries.len() as u64 + 1;
                let key = format!("e{}", self.random.u64(0..ENTITIES_EACH));
                let filler = format!("{id}/{key};").repeat(self.random.usize(1..60));
                let state = format!("{filler}@{seq}");
                let idempotency = IdempotencyKey::new(&format!("once-{seq}")).unwrap();
                let base = shard.entries.iter().rev().find(|(other, _)| *other == key);
                let mut entry = put(seq, &key, &state);
                let Op::Turn { change, dedup, .. } = &mut entry.op else { unreachable!() };
                let next = Bytes::copy_from_slice(state.as_bytes());
                *change = delta::change(base.map(|(_, state)| state.as_bytes()), &next);
                *dedup = Some(DedupRecord {
                    key: idempotency,
                    method: MethodId(1),
                    payload_hash: seq,
                    reply: StoredReply::Quarantined,
                    version: Seq(seq),
                });
                entries.push(entry);
                shard.entries.push((key, state));
                shard.epochs.push(shard.epoch);
            }
            segments.push(segment(id, shard.epoch, &entries));
            touched.push((id, shard.entries.len() as u64));
        }
        self.ticket += 1;
        self.waiting.insert(self.ticket, touched);
        running.append(self.ticket, segments);
    }

    fn hear(&mut self, news: &JournalNews) {
        if let JournalNews::Committed { ticket, .. } = news {
            for (id, last) in self.waiting.remove(ticket).unwrap() {
                self.shards.get_mut(&id).unwrap().told = last;
            }
        }
    }

    /// Checkpoints the durable entries of one shard, up to some point.
    fn checkpoint(&mut self, running: &Running) {
        let id = self.random.u32(0..SHARDS);
        let shard = self.shards.get_mut(&id).unwrap();
        if shard.told <= shard.applied {
            return;
        }
        let upto = self.random.u64(shard.applied + 1..=shard.told);
        let mut batch = CheckpointBatch::default();
        let mut rows = BTreeMap::new();
        for seq in shard.applied + 1..=upto {
            let (key, state) = &shard.entries[usize::try_from(seq).unwrap() - 1];
            rows.insert(key.clone(), row(id, key, seq, state));
            let record = DedupRecord {
                key: IdempotencyKey::new(&format!("once-{seq}")).unwrap(),
                method: MethodId(1),
                payload_hash: seq,
                reply: StoredReply::Quarantined,
                version: Seq(seq),
            };
            let (shard, entity) = (ShardId(id), entity(key));
            batch.dedup.push(DedupRow { shard, entity, log_time: LogTime(seq), record });
        }
        batch.rows = rows.into_values().collect();
        let stands = (shard.epochs[usize::try_from(upto).unwrap() - 1], upto);
        batch.shards.push(ShardMark { epoch: Epoch(shard.epoch), ..mark_at(id, stands) });
        shard.applied = upto;
        // the power may go while it is written: nobody waits for the answer
        running.storage.state().checkpoint(batch, Box::new(drop));
    }

    /// Compares what a start found with what it must and may find, and goes on from there.
    fn check(&mut self, running: &Running) -> Result<(), String> {
        let empty = RecoveredShard::default();
        let mut lasts = BTreeMap::new();
        for (&id, shard) in &mut self.shards {
            let found = running.recovered.shards.get(&ShardId(id)).unwrap_or(&empty);
            let last = found.last.0;
            lasts.insert(id, last);
            if last < shard.told || last > shard.entries.len() as u64 {
                let appended = shard.entries.len();
                return Err(format!(
                    "shard {id}: {last} of {} told, {appended} appended",
                    shard.told
                ));
            }
            shard.entries.truncate(usize::try_from(last).unwrap());
            shard.epochs.truncate(shard.entries.len());
            for (seq, epoch) in (1..).zip(&shard.epochs).skip_while(|at| at.0 < found.applied.0) {
                if found.history.epoch_at(Seq(seq)) != Some(Epoch(*epoch)) {
                    return Err(format!("shard {id}: entry {seq} is of epoch {epoch}"));
                }
            }
            shard.told = last;
            shard.applied = found.applied.0;
            shard.epoch = found.epoch.0 + 1;
            let dedup: std::collections::BTreeSet<_> =
                found.dedup.iter().map(|(_, _, record)| record.payload_hash).collect();
            if !dedup.iter().copied().eq(1..=last) {
                return Err(format!("shard {id}: dedup records {dedup:?} for entries to {last}"));
            }
            let states: BTreeMap<_, _> =
                shard.entries.iter().map(|(key, state)| (key.as_str(), state.as_str())).collect();
            for (key, state) in states {
                let dirty = found.dirty.iter().find(|row| row.entity.key.as_str() == key);
                let stored = match dirty {
                    Some(row) => row.bytes.clone(),
                    None => match running.load(id, key) {
                        Ok(Some(stored)) => stored.bytes,
                        other => return Err(format!("shard {id}, {key}: {other:?}")),
                    },
                };
                if stored != state.as_bytes() {
                    return Err(format!("shard {id}, {key}: {stored:?} is not {state}"));
                }
            }
        }
        for (ticket, touched) in std::mem::take(&mut self.waiting) {
            let there = touched.iter().filter(|(id, last)| lasts[id] >= *last).count();
            if there != 0 && there != touched.len() {
                return Err(format!("batch {ticket} is there by halves: {touched:?}, {lasts:?}"));
            }
        }
        Ok(())
    }
}

/// One disk through several lives; says what was lost, and how often the power was.
fn live(seed: u64, lives: u64, lying: bool) -> Result<u64, String> {
    let rig = Rig::new();
    let mut model = Model::new(seed);
    for life in 0..lives {
        let mut opened = rig.try_open().map_err(|error| format!("life {life}: {error}"))?;
        // small steps, so that the power also goes between two of them
        opened.steps = Steps { cut_least: 1, txn_rows: 3, ..Steps::default() };
        let running = start(opened);
        model.check(&running).map_err(|what| format!("life {life}: {what}"))?;
        let mut faults = Faults { lying, ..Faults::default() };
        match model.random.u32(0..4) {
            0 => faults.syncs_left = Some(model.random.u64(0..12)),
            1 => faults.writes_left = Some(model.random.u64(0..60)),
            _ => {}
        }
        rig.disk.set_faults(faults);
        for _ in 0..model.random.u32(1..40) {
            match model.random.u32(0..10) {
                0..=5 => model.append(&running),
                6..=7 => model.checkpoint(&running),
                _ => {
                    if let Ok(news) = running.news.recv_timeout(Duration::from_millis(2)) {
                        model.hear(&news);
                    }
                }
            }
            while let Ok(news) = running.news.try_recv() {
                model.hear(&news);
            }
        }
        let crash_seed = model.random.u64(..);
        rig.disk.crash(crash_seed);
        // told between the last look and the crash, or never: the process is gone
        while let Ok(news) = running.news.try_recv() {
            model.hear(&news);
        }
        drop(running.storage);
        while let Ok(news) = running.news.try_recv() {
            model.hear(&news);
        }
    }
    let opened = rig.try_open().map_err(|error| format!("at the end: {error}"))?;
    model.check(&start(opened)).map_err(|what| format!("at the end: {what}"))?;
    Ok(rig.disk.counts().crashes)
}

#[test]
fn power_loss_loses_nothing_that_was_told_durable() {
    let mut crashes = 0;
    for seed in 0..50 {
        crashes += live(seed, 5, false).unwrap_or_else(|what| panic!("seed {seed}: {what}"));
    }
    assert!(crashes >= 200, "{crashes} crashes");
}

/// The checks above find a disk that lies: they can fail.
#[test]
fn a_lying_disk_is_found_out() {
    let found = (0..20).filter(|&seed| live(seed, 5, true).is_err()).count();
    assert!(found >= 10, "{found} of 20 lying disks were found out");
}
