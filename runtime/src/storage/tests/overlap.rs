//! Appends, replacements and power losses at random, against a list of entries.
//!
//! Each seed drives several lives of one shard's standby. A life goes on from what was found,
//! appends under its epoch, now and then takes a newer primary's side and replaces the end of the
//! log, saves what is durable, is written to by deposed primaries, and ends with the power.

use super::*;

/// What the journal was given, and what it has to hold.
struct Model {
    random: fastrand::Rng,
    /// The epoch of each entry; entry `n` is at `n - 1`.
    log: Vec<u64>,
    promised: u64,
    applied: u64,
    /// What was ever given to be saved is committed, and no newer primary replaces it: rows of it
    /// may be in the tables although the power went before their mark was.
    committed: u64,
    /// The log and the promise after each write that was not told yet, by its ticket.
    waiting: BTreeMap<u64, (Vec<u64>, u64)>,
    /// The same after the last write that was told.
    told: (Vec<u64>, u64),
    ticket: u64,
}

fn entries(log: &[u64], first: usize, upto: usize) -> Vec<Segment> {
    let mut segments = Vec::new();
    let places: Vec<_> = (first..=upto).collect();
    for run in places.chunk_by(|a, b| log[a - 1] == log[b - 1]) {
        let epoch = log[run[0] - 1];
        let entry = |seq: &usize| put(*seq as u64, &key(*seq), &format!("{epoch}:{seq}"));
        segments.push(segment(1, epoch, &run.iter().map(entry).collect::<Vec<_>>()));
    }
    segments
}

fn key(seq: usize) -> String {
    format!("k{}", seq % 4)
}

/// The length up to which two logs are the same.
fn agree(a: &[u64], b: &[u64]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// The last entry of each key.
fn states(log: &[u64]) -> BTreeMap<String, (u64, String)> {
    let entry =
        |(at, epoch): (usize, &u64)| (key(at + 1), (at as u64 + 1, format!("{epoch}:{}", at + 1)));
    log.iter().enumerate().map(entry).collect()
}

impl Model {
    /// Appends, or replaces from some entry above the mark on.
    fn write(&mut self, running: &Running) {
        let newer = self.random.u32(0..3) == 0;
        self.promised += u64::from(newer);
        let least = if newer { self.committed.max(self.random.u64(0..30)) } else { u64::MAX };
        let keep = usize::try_from(least).unwrap().min(self.log.len());
        self.log.truncate(keep);
        // what is new: entries of epochs that an earlier primary wrote, then the newest's
        let mut epoch = self.log.last().copied().unwrap_or(1);
        for _ in 0..self.random.u32(0..6) {
            epoch = self.random.u64(epoch..=self.promised);
            self.log.push(epoch);
        }
        let cut = keep == self.log.len();
        if cut && keep < self.known() {
            self.log.push(self.promised); // a log is only cut by what replaces it
        }
        self.ticket += 1;
        let segments = entries(&self.log, keep + 1, self.log.len());
        running.persist(self.ticket, (1, self.promised), segments);
        self.waiting.insert(self.ticket, (self.log.clone(), self.promised));
    }

    /// The length of the log that was given last.
    fn known(&self) -> usize {
        self.waiting.values().next_back().unwrap_or(&self.told).0.len()
    }

    fn write_deposed(&mut self, running: &Running) {
        self.ticket += 1;
        let mut log = self.log.clone();
        log.push(self.promised - 1);
        running.append(self.ticket, entries(&log, log.len(), log.len()));
    }

    fn hear(&mut self, news: &Receiver<JournalNews>) -> Result<(), String> {
        while let Ok(news) = news.try_recv() {
            match news {
                JournalNews::Committed { ticket, .. } => {
                    let told = self.waiting.remove(&ticket);
                    self.told = told.ok_or_else(|| format!("{ticket} should be fenced"))?;
                }
                JournalNews::Fenced { ticket, promised, .. } => {
                    if self.waiting.contains_key(&ticket) || promised.0 > self.promised {
                        return Err(format!("{ticket} was fenced by {promised:?}"));
                    }
                }
                JournalNews::Failed { .. } => {}
            }
        }
        Ok(())
    }

    /// Saves entries that are durable and in every log that was given since, as committed ones are.
    fn save(&mut self, running: &Running) {
        let told = &self.told.0;
        let common = self.waiting.values().map(|(log, _)| agree(log, told));
        let common = common.fold(agree(&self.log, told), usize::min) as u64;
        if common <= self.applied {
            return;
        }
        self.applied = self.random.u64(self.applied + 1..=common);
        self.committed = self.committed.max(self.applied);
        let upto = &self.log[..usize::try_from(self.applied).unwrap()];
        let rows = states(upto);
        let rows = rows.iter().map(|(key, (seq, state))| row(1, key, *seq, state)).collect();
        // the shard's epoch runs ahead of the one that wrote the entry
        let stands = (upto[upto.len() - 1], self.applied);
        let shards = vec![ShardMark { epoch: Epoch(self.told.1), ..mark_at(1, stands) }];
        let batch = CheckpointBatch { rows, shards, ..CheckpointBatch::default() };
        running.storage.state().checkpoint(batch, Box::new(drop));
    }

    /// What was found is what was told, or what one of the later writes made of it.
    fn check(&mut self, running: &Running) -> Result<(), String> {
        let empty = RecoveredShard::default();
        let found = running.recovered.shards.get(&ShardId(1)).unwrap_or(&empty);
        let promised = found.promised.0;
        let epoch_at = |seq: u64| found.history.epoch_at(Seq(seq)).map_or(0, |epoch| epoch.0);
        let above: Vec<_> = (found.applied.0 + 1..=found.last.0).map(epoch_at).collect();
        let applied = usize::try_from(found.applied.0).unwrap();
        let waiting = std::mem::take(&mut self.waiting);
        let possible = std::iter::once(&self.told).chain(waiting.values());
        let is = |(log, of): &&(Vec<u64>, u64)| {
            *of == promised && log.get(applied..) == Some(&above[..])
        };
        let now = possible.clone().find(is).cloned().ok_or_else(|| {
            let possible: Vec<_> = possible.collect();
            format!("{applied} and {above:?} under {promised}, of {possible:?}")
        })?;
        if applied > 0 && epoch_at(applied as u64) != now.0[applied - 1] {
            return Err(format!("base {:?} of {now:?}", found.history.base()));
        }
        for (key, (_, state)) in states(&now.0) {
            let dirty = found.dirty.iter().find(|row| row.entity.key.as_str() == key);
            let stored = dirty.map(|row| row.bytes.clone());
            let stored = match stored {
                Some(bytes) => bytes,
                None => running.load(1, &key).map_err(|error| error.to_string())?.unwrap().bytes,
            };
            if stored != state.as_bytes() {
                return Err(format!("{key} is {stored:?}, not {state}"));
            }
        }
        let read = running.storage.journal().read(ShardId(1), Seq(found.applied.0 + 1), 1 << 20);
        let expected = entries(&now.0, applied + 1, now.0.len());
        let all = |segments: Vec<Segment>| -> Vec<_> {
            let each = segments.into_iter().map(|it| (it.epoch, it.entries().unwrap()));
            each.flat_map(|(epoch, all)| all.into_iter().map(move |it| (epoch, it))).collect()
        };
        if all(read.map_err(|error| error.to_string())?) != all(expected) {
            return Err("what is read back is not what was found".to_owned());
        }
        self.applied = found.applied.0;
        self.log.clone_from(&now.0);
        self.promised = promised.max(1);
        self.told = now;
        Ok(())
    }
}

fn live(seed: u64) -> Result<(), String> {
    let rig = Rig::new();
    let mut model = Model {
        random: fastrand::Rng::with_seed(seed),
        log: Vec::new(),
        promised: 1,
        applied: 0,
        committed: 0,
        waiting: BTreeMap::new(),
        told: (Vec::new(), 0),
        ticket: 0,
    };
    for life in 0..6 {
        let mut opened = rig.try_open().map_err(|error| format!("life {life}: {error}"))?;
        opened.steps = Steps { cut_least: 1, txn_rows: 3, ..Steps::default() };
        let running = start(opened);
        model.check(&running).map_err(|what| format!("life {life}: {what}"))?;
        if model.random.bool() {
            let syncs_left = Some(model.random.u64(0..20));
            rig.disk.set_faults(Faults { syncs_left, ..Faults::default() });
        }
        for _ in 0..model.random.u32(1..40) {
            match model.random.u32(0..10) {
                0..=5 => model.write(&running),
                6 if model.promised > 1 => model.write_deposed(&running),
                7 => model.save(&running),
                _ => std::thread::sleep(Duration::from_millis(1)),
            }
            model.hear(&running.news)?;
        }
        rig.disk.crash(model.random.u64(..));
        drop(running.storage);
        model.hear(&running.news)?;
    }
    Ok(())
}

#[test]
fn what_is_found_is_what_was_written_or_a_write_later() {
    for seed in 0..50 {
        live(seed).unwrap_or_else(|what| panic!("seed {seed}: {what}"));
    }
}
