//! Opens the two disks of a copy.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use protocol::fault::code;
use protocol::{DiskKey, Fault};
use replica::{Disk, FileDisk};
use tokio::runtime::Handle;
use transfer::copy::{Mark, Receiving};
use transfer::{ExportDisk, Reader};

use crate::cli::Place;

/// Reads of an export are this long at most: every server takes them, whether it says so or not (the protocol's bound is 32 MiB).
const READ: u64 = 1 << 20;

/// Opens the source, over several connections where an export takes them; what is read of it is counted.
///
/// One that this host knows to be half written is refused.
pub async fn source(place: &Place, state: &Path, connections: u8) -> Result<(Reader, Arc<AtomicU64>), Fault> {
    let read = Arc::new(AtomicU64::new(0));
    let name = (0, key()?);
    let unusable = |error: io::Error| source_fault(place, &error);
    if mark(place, state).is_set().map_err(unusable)? {
        let cause = "an earlier copy onto it had not finished";
        let remedy = "finish that copy first: run its command again, it goes on";
        return Err(source_fault(place, &cause).with_remedy(remedy));
    }
    let reader = match place {
        Place::Path(path) => Reader::disk(name, Arc::new(FileDisk::read_only(path).map_err(unusable)?), read.clone()),
        Place::Export(uri) => {
            let client =
                nbd::Client::connect(uri, &several(connections)).await.map_err(|error| source_fault(uri, &error))?;
            let size = client.size();
            Reader::export(name, client, None, (size, READ), read.clone())
        }
        Place::Remote(peer) => return Err(source_fault(peer, &"it is on another host: send stands where the disk is")),
    };
    if reader.size == 0 {
        return Err(Fault::new(code::COPY_SOURCE, "the source of a copy is empty", "it has no bytes"));
    }
    Ok((reader, read))
}

/// A target, opened once the source's size is known, over several connections where an export takes them.
pub fn target(place: &Place, state: &Path, connections: u8) -> Result<Receiving, Fault> {
    let mark = mark(place, state);
    match place.clone() {
        Place::Path(path) => {
            let open = move |size, dry_run: bool| {
                let disk: Arc<dyn Disk> = match (path.try_exists(), dry_run) {
                    // It would be made: nothing but zeroes is there.
                    (Ok(false), true) => Arc::new(Nothing(size)),
                    (Ok(false), false) => opened(&path, FileDisk::create(&path, size))?,
                    (_, true) => opened(&path, FileDisk::read_only(&path))?,
                    (_, false) => opened(&path, FileDisk::open(&path))?,
                };
                large_enough(&path.display(), disk, size)
            };
            Ok(Receiving::new(Box::new(open), mark))
        }
        Place::Export(uri) => {
            let runtime = Handle::current();
            let open = move |size, dry_run: bool| {
                let options = several(connections);
                let connected = tokio::task::block_in_place(|| runtime.block_on(nbd::Client::connect(&uri, &options)));
                let client = connected.map_err(|error| target_fault(&uri, &error))?;
                if client.read_only() && !dry_run {
                    return Err(target_fault(&uri, &"the export is read-only"));
                }
                large_enough(&uri, Arc::new(ExportDisk::new(client, runtime.clone())), size)
            };
            // One connection carries several writes as well: it is their round trips that cost.
            Ok(Receiving::new(Box::new(open), mark).with_writers(usize::from(connections)))
        }
        Place::Remote(peer) => Err(target_fault(&peer, &"it is on another host: receive stands where the disk is")),
    }
}

fn several(connections: u8) -> nbd::Options {
    nbd::Options { connections, ..Reader::options() }
}

fn opened(path: &Path, disk: io::Result<FileDisk>) -> Result<Arc<FileDisk>, Fault> {
    disk.map(Arc::new).map_err(|error| target_fault(&path.display(), &error))
}

fn large_enough(name: &dyn std::fmt::Display, disk: Arc<dyn Disk>, size: u64) -> Result<Arc<dyn Disk>, Fault> {
    match disk.size() >= size {
        true => Ok(disk),
        false => Err(target_fault(name, &format!("it has {} bytes, the source {size}", disk.size()))),
    }
}

/// Says of a place that it is half written: beside what is, or would be, a file, otherwise in the folder for such marks.
fn mark(place: &Place, state: &Path) -> Mark {
    match place {
        Place::Path(path) if path.metadata().map_or(true, |metadata| metadata.is_file()) => Mark::beside(path),
        _ => Mark::within(state, &place.to_string()),
    }
}

fn key() -> Result<DiskKey, Fault> {
    "disk".parse().map_err(|_| source_fault(&"disk", &"a disk cannot be called that"))
}

fn source_fault(name: &dyn std::fmt::Display, cause: &dyn std::fmt::Display) -> Fault {
    Fault::new(code::COPY_SOURCE, format!("{name} cannot be copied"), cause.to_string())
}

fn target_fault(name: &dyn std::fmt::Display, cause: &dyn std::fmt::Display) -> Fault {
    Fault::new(code::COPY_TARGET, format!("{name} cannot become a copy"), cause.to_string())
}

/// A target of a dry run that is not there.
struct Nothing(u64);

impl Disk for Nothing {
    fn size(&self) -> u64 {
        self.0
    }
    fn read_at(&self, _: u64, buffer: &mut [u8]) -> io::Result<()> {
        buffer.fill(0);
        Ok(())
    }
    fn write_at(&self, _: u64, _: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
    fn write_zeroes(&self, _: u64, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
    fn data(&self, _: u64, _: u64) -> io::Result<protocol::BlockMap> {
        Ok(protocol::BlockMap::new())
    }
}
