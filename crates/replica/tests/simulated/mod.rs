//! A machine whose power can be cut: volumes and disks that lose what was not synced, in part, in any order.
//!
//! What was written and not synced survives a cut sector by sector, at random; files made, renamed and removed without a
//! sync of their directory survive or not, each for itself. A failed sync loses what it should have made durable while
//! reads still show it, as Linux does; such a disk shows the truth when it is opened anew, or when the power was gone.

#![allow(dead_code, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use protocol::{BlockMap, Extent};
use replica::{Disk, Volume};

const SECTOR: usize = 512;

/// Numbers that depend on nothing but the seed.
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.roll() % end.max(1)
    }
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// What the whole machine shares.
pub struct Power {
    pub dice: Dice,
    /// The power goes after so many more changes to volumes or disks.
    pub cut_after: Option<u64>,
    pub off: bool,
    /// The sync after so many more fails.
    pub fail_sync_after: Option<u64>,
    /// So many more bytes fit on the volumes.
    pub space: Option<u64>,
    /// What is not done though it is said to be.
    pub lie: Lie,
}

/// A fault that is built in, to see that the tests notice.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Lie {
    #[default]
    None,
    /// Files whose name ends like this are not synced.
    FileSync(&'static str),
    DirectorySync,
    DiskFlush,
}

impl Power {
    /// Counts one change. `Ok(false)`: it is the one during which the power goes.
    fn change(&mut self) -> io::Result<bool> {
        if self.off {
            return Err(io::Error::other("the power is off"));
        }
        match &mut self.cut_after {
            Some(0) => {
                self.off = true;
                Ok(false)
            }
            Some(left) => {
                *left -= 1;
                Ok(true)
            }
            None => Ok(true),
        }
    }
    fn on(&self) -> io::Result<()> {
        if self.off { Err(io::Error::other("the power is off")) } else { Ok(()) }
    }
    /// Whether the sync that is being done is to fail.
    fn sync_fails(&mut self) -> bool {
        match &mut self.fail_sync_after {
            Some(0) => {
                self.fail_sync_after = None;
                true
            }
            Some(left) => {
                *left -= 1;
                false
            }
            None => false,
        }
    }
}

pub struct Machine {
    power: Mutex<Power>,
}

impl Machine {
    pub fn new(seed: u64) -> Arc<Machine> {
        let dice = Dice(seed);
        let power = Power { dice, cut_after: None, off: false, fail_sync_after: None, space: None, lie: Lie::None };
        Arc::new(Machine { power: Mutex::new(power) })
    }
    pub fn power(&self) -> MutexGuard<'_, Power> {
        self.power.lock().unwrap()
    }
}

/// Bytes of which some are durable, some only written.
#[derive(Clone, Default)]
struct Content {
    durable: Vec<u8>,
    pending: Vec<Change>,
    live: Vec<u8>,
}

#[derive(Clone)]
enum Change {
    Write(usize, Vec<u8>),
    Length(usize),
}

fn put(bytes: &mut Vec<u8>, at: usize, new: &[u8]) {
    if bytes.len() < at + new.len() {
        bytes.resize(at + new.len(), 0);
    }
    bytes[at..at + new.len()].copy_from_slice(new);
}

impl Change {
    fn whole(&self, bytes: &mut Vec<u8>) {
        match self {
            Change::Write(at, new) => put(bytes, *at, new),
            Change::Length(length) => bytes.resize(*length, 0),
        }
    }
    /// Does some sectors of it.
    fn in_part(&self, bytes: &mut Vec<u8>, dice: &mut Dice) {
        match (self, dice.below(4)) {
            (_, 0) => {}
            (_, 1) | (Change::Length(_), _) => self.whole(bytes),
            (Change::Write(at, new), _) => {
                let mut from = 0;
                while from < new.len() {
                    let to = new.len().min((at + from) / SECTOR * SECTOR + SECTOR - at);
                    if dice.chance(50) {
                        put(bytes, at + from, &new[from..to]);
                    }
                    from = to;
                }
            }
        }
    }
}

impl Content {
    fn change(&mut self, change: Change) {
        change.whole(&mut self.live);
        self.pending.push(change);
    }
    fn sync(&mut self) {
        for change in std::mem::take(&mut self.pending) {
            change.whole(&mut self.durable);
        }
    }
    /// Some of it reaches the medium, the rest never will, and reads do not tell.
    fn fail_sync(&mut self, dice: &mut Dice) {
        for change in std::mem::take(&mut self.pending) {
            change.in_part(&mut self.durable, dice);
        }
    }
    fn crash(&mut self, dice: &mut Dice) {
        self.fail_sync(dice);
        self.live = self.durable.clone();
    }
}

#[derive(Clone)]
enum Naming {
    Create(String, usize),
    Rename(String, String, usize),
    Remove(String),
}

impl Naming {
    fn apply(&self, names: &mut BTreeMap<String, usize>) {
        match self {
            Naming::Create(name, file) => {
                names.insert(name.clone(), *file);
            }
            Naming::Rename(from, to, file) => {
                names.remove(from);
                names.insert(to.clone(), *file);
            }
            Naming::Remove(name) => {
                names.remove(name);
            }
        }
    }
}

#[derive(Default)]
struct Files {
    files: Vec<Content>,
    durable: BTreeMap<String, usize>,
    live: BTreeMap<String, usize>,
    pending: Vec<Naming>,
    locked: Arc<()>,
}

/// A folder in memory.
pub struct SimulatedVolume {
    machine: Arc<Machine>,
    files: Mutex<Files>,
}

impl SimulatedVolume {
    pub fn new(machine: &Arc<Machine>) -> Arc<SimulatedVolume> {
        Arc::new(SimulatedVolume { machine: machine.clone(), files: Mutex::default() })
    }

    /// The files whose names end like this.
    pub fn ending(&self, suffix: &str) -> Vec<String> {
        self.files.lock().unwrap().live.keys().filter(|name| name.ends_with(suffix)).cloned().collect()
    }

    /// Damages a file: flips a bit of it, or cuts it off.
    pub fn spoil(&self, name: &str, how: u64) {
        let mut files = self.files.lock().unwrap();
        let file = files.live[name];
        let content = &mut files.files[file];
        let at = (how / 4) as usize % content.live.len().max(1);
        for bytes in [&mut content.live, &mut content.durable] {
            match bytes.get_mut(at) {
                Some(_) if how.is_multiple_of(4) => bytes.truncate(at),
                Some(byte) => *byte ^= 1 << (how % 8),
                None => {}
            }
        }
    }

    /// What is found when the power is back.
    pub fn crash(&self) {
        let mut power = self.machine.power();
        let mut files = self.files.lock().unwrap();
        let files = &mut *files;
        for naming in std::mem::take(&mut files.pending) {
            if power.dice.chance(50) {
                naming.apply(&mut files.durable);
            }
        }
        files.live = files.durable.clone();
        for content in &mut files.files {
            content.crash(&mut power.dice);
        }
    }

    fn with<T>(&self, name: &str, work: impl FnOnce(&mut Content) -> T) -> io::Result<T> {
        let mut files = self.files.lock().unwrap();
        let file = *files.live.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(work(&mut files.files[file]))
    }

    fn name(&self, naming: Naming) -> io::Result<()> {
        let mut power = self.machine.power();
        let goes_on = power.change()?;
        let mut files = self.files.lock().unwrap();
        if goes_on || power.dice.chance(50) {
            naming.apply(&mut files.live);
            files.pending.push(naming);
        }
        if goes_on { Ok(()) } else { Err(io::Error::other("the power goes")) }
    }

    fn change(&self, name: &str, change: Change) -> io::Result<()> {
        let mut power = self.machine.power();
        let goes_on = power.change()?;
        if let (Change::Write(at, bytes), Some(space)) = (&change, &mut power.space) {
            let length = self.with(name, |content| content.live.len())?;
            let growth = (at + bytes.len()).saturating_sub(length) as u64;
            let Some(left) = space.checked_sub(growth) else {
                // A part fits.
                let fits = (length + *space as usize).saturating_sub(*at).min(bytes.len());
                *space = 0;
                self.with(name, |content| content.change(Change::Write(*at, bytes[..fits].to_vec())))?;
                return Err(io::ErrorKind::StorageFull.into());
            };
            *space = left;
        }
        self.with(name, |content| content.change(change))?;
        if goes_on { Ok(()) } else { Err(io::Error::other("the power goes")) }
    }
}

impl Volume for SimulatedVolume {
    fn create(&self, name: &str) -> io::Result<()> {
        let file = {
            let mut files = self.files.lock().unwrap();
            files.files.push(Content::default());
            files.files.len() - 1
        };
        self.name(Naming::Create(name.to_string(), file))
    }
    fn write_at(&self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.change(name, Change::Write(offset as usize, bytes.to_vec()))
    }
    fn read_at(&self, name: &str, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.machine.power().on()?;
        self.with(name, |content| {
            let from = offset as usize;
            let bytes = content.live.get(from..from + buffer.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
            buffer.copy_from_slice(bytes);
            Ok(())
        })?
    }
    fn length(&self, name: &str) -> io::Result<u64> {
        self.machine.power().on()?;
        self.with(name, |content| content.live.len() as u64)
    }
    fn truncate(&self, name: &str, length: u64) -> io::Result<()> {
        self.change(name, Change::Length(length as usize))
    }
    fn sync(&self, name: &str) -> io::Result<()> {
        let mut power = self.machine.power();
        if !power.change()? {
            return Err(io::Error::other("the power goes"));
        }
        if matches!(power.lie, Lie::FileSync(suffix) if name.ends_with(suffix)) {
            return Ok(());
        }
        let power = &mut *power;
        if power.sync_fails() {
            self.with(name, |content| content.fail_sync(&mut power.dice))?;
            return Err(io::Error::other("the medium fails"));
        }
        self.with(name, Content::sync)
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.length(from)?;
        let file = *self.files.lock().unwrap().live.get(from).ok_or(io::ErrorKind::NotFound)?;
        self.name(Naming::Rename(from.to_string(), to.to_string(), file))
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.length(name)?;
        self.name(Naming::Remove(name.to_string()))
    }
    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        self.machine.power().on()?;
        let files = self.files.lock().unwrap();
        Ok(files.live.iter().map(|(name, file)| (name.clone(), files.files[*file].live.len() as u64)).collect())
    }
    fn sync_directory(&self) -> io::Result<()> {
        let mut power = self.machine.power();
        if !power.change()? {
            return Err(io::Error::other("the power goes"));
        }
        if power.lie == Lie::DirectorySync {
            return Ok(());
        }
        let mut files = self.files.lock().unwrap();
        let fails = power.sync_fails();
        for naming in std::mem::take(&mut files.pending) {
            // A directory whose sync failed may still be synced later: its changes are the journal's of the file system.
            if !fails || power.dice.chance(50) {
                naming.apply(&mut files.durable);
            } else {
                files.pending.push(naming);
            }
        }
        if fails { Err(io::Error::other("the medium fails")) } else { Ok(()) }
    }
    fn lock(&self) -> io::Result<Box<dyn Send + Sync>> {
        let files = self.files.lock().unwrap();
        if Arc::strong_count(&files.locked) > 1 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Box::new(files.locked.clone()))
    }
    fn describe(&self, name: &str) -> String {
        format!("simulated/{name}")
    }
}

/// A disk in memory.
pub struct SimulatedDisk {
    machine: Arc<Machine>,
    content: Mutex<Content>,
    size: u64,
    /// Other threads get their turn in the middle of a write.
    pub yields: bool,
}

impl SimulatedDisk {
    pub fn new(machine: &Arc<Machine>, bytes: Vec<u8>, yields: bool) -> Arc<SimulatedDisk> {
        let size = bytes.len() as u64;
        let content = Content { durable: bytes.clone(), pending: vec![], live: bytes };
        Arc::new(SimulatedDisk { machine: machine.clone(), content: Mutex::new(content), size, yields })
    }
    /// What is found when the power is back.
    pub fn crash(&self) {
        self.content.lock().unwrap().crash(&mut self.machine.power().dice);
    }
    /// What an opening sees.
    pub fn reopen(&self) {
        // What a failed flush left in memory may still be read, or not.
        if self.machine.power().dice.chance(50) {
            return;
        }
        let mut content = self.content.lock().unwrap();
        let mut live = content.durable.clone();
        content.pending.iter().for_each(|change| change.whole(&mut live));
        content.live = live;
    }
    pub fn bytes(&self) -> Vec<u8> {
        self.content.lock().unwrap().live.clone()
    }
}

impl Disk for SimulatedDisk {
    fn size(&self) -> u64 {
        self.size
    }
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.machine.power().on()?;
        let content = self.content.lock().unwrap();
        let from = offset as usize;
        buffer.copy_from_slice(content.live.get(from..from + buffer.len()).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if offset + bytes.len() as u64 > self.size {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let goes_on = self.machine.power().change()?;
        if self.yields {
            let mut at = offset as usize;
            for piece in bytes.chunks(SECTOR * 4) {
                self.content.lock().unwrap().change(Change::Write(at, piece.to_vec()));
                at += piece.len();
                std::thread::yield_now();
            }
        } else {
            self.content.lock().unwrap().change(Change::Write(offset as usize, bytes.to_vec()));
        }
        if goes_on { Ok(()) } else { Err(io::Error::other("the power goes")) }
    }
    fn write_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        self.write_at(offset, &vec![0; length as usize])
    }
    fn flush(&self) -> io::Result<()> {
        let mut power = self.machine.power();
        if !power.change()? {
            return Err(io::Error::other("the power goes"));
        }
        if power.lie == Lie::DiskFlush {
            return Ok(());
        }
        let mut content = self.content.lock().unwrap();
        if power.sync_fails() {
            content.fail_sync(&mut power.dice);
            return Err(io::Error::other("the medium fails"));
        }
        content.sync();
        Ok(())
    }
    fn data(&self, offset: u64, length: u64) -> io::Result<BlockMap> {
        let content = self.content.lock().unwrap();
        let used = |sector: &usize| {
            content.live[*sector..self.size.min(*sector as u64 + 512) as usize].iter().any(|b| *b != 0)
        };
        let sectors = (offset as usize / SECTOR * SECTOR..(offset + length) as usize).step_by(SECTOR);
        Ok(sectors.filter(used).map(|sector| Extent::new(sector as u64, 512)).collect())
    }
}
