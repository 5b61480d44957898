//! All items of a master target, and what they share: directories, the platform, the NBD server of views.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use nbd::{Address, QemuNbd, Server, Uri};
use platforms::Platform;
use protocol::fault::code;
use protocol::keeping::Keeping;
use protocol::{Attempt, Fault, ItemId};
use replica::{Disk, DiskHome, DiskRecord, Place, Replica, ReplicaError, Spec};
use tokio::runtime::Handle;

use crate::fold::Left;
use crate::item::Item;
use crate::outside::{self, OutsideDisk};
use crate::record::Record;
use crate::retention;
use crate::view::{self, Use, ViewExport};
use crate::{served, test_machine};

/// Everything that is kept here.
pub(crate) struct Shelf {
    data_dir: PathBuf,
    retention: PathBuf,
    pub(crate) platform: Arc<dyn Platform>,
    views: Server,
    items: RwLock<BTreeMap<ItemId, Arc<Item>>>,
    /// Items whose replica is gone for good.
    folded: Mutex<BTreeMap<ItemId, Record>>,
    /// The programs that serve writable views, by item and number.
    scratch: Mutex<BTreeMap<(ItemId, i64), Vec<QemuNbd>>>,
    /// What control last said is to be kept, also of items that are not here yet.
    keepings: Mutex<Vec<Keeping>>,
}

impl Shelf {
    /// Opens every item that has a record, and serves the views that raised machines stand on.
    pub(crate) async fn open(data_dir: &Path, retention: &Path, platform: Arc<dyn Platform>) -> Result<Shelf, Fault> {
        let failed = |what: &Path| {
            let message = format!("{} cannot be used", what.display());
            move |error: io::Error| Fault::new(code::REPLICA_IO, message, error.to_string())
        };
        for directory in [data_dir, retention, &data_dir.join("items"), &data_dir.join("raised")] {
            std::fs::create_dir_all(directory).map_err(failed(directory))?;
        }
        retention::check(retention, &data_dir.join("replicas"))?;
        let socket = data_dir.join("views.sock");
        let views = Server::bind(&Address::Unix(socket.clone())).await.map_err(failed(&socket))?;
        let shelf = Shelf {
            data_dir: data_dir.to_path_buf(),
            retention: retention.to_path_buf(),
            platform,
            views,
            items: RwLock::default(),
            folded: Mutex::default(),
            scratch: Mutex::default(),
            keepings: Mutex::default(),
        };
        let records = data_dir.join("items");
        for entry in std::fs::read_dir(&records).map_err(failed(&records))? {
            let file = entry.map_err(failed(&records))?.path();
            if file.extension().is_some_and(|extension| extension == "json") {
                let record = Record::load(&file).map_err(failed(&file))?;
                shelf.reopen(record, file).await?;
            }
        }
        Ok(shelf)
    }

    async fn reopen(&self, record: Record, file: PathBuf) -> Result<(), Fault> {
        let id = record.item.clone();
        if record.folded.is_some() {
            self.write_folded().insert(id, record);
            return Ok(());
        }
        let place = self.place(&id);
        let journal = place.retention.clone();
        // Epochs may go on: what had arrived of one is not undone before it is known that none will.
        let fed = record.grant.is_some();
        let replica = self.on_disk(&id, move |open| match fed {
            true => Replica::open_unfinished(&place, open),
            false => Replica::open(&place, open),
        });
        let replica = replica.await?;
        let item = Arc::new(Item::new(replica, record, file, journal));
        if let Some(raised) = item.record().raised {
            self.serve_view(&item, raised.point, Use::Raised).await?;
        }
        // Nobody's protection depends on these: one that cannot be served keeps nothing else from being.
        if let Err(fault) = test_machine::reopen(self, &item).await {
            tracing::warn!(item = %id, %fault, cause = fault.cause, "a test machine's view is not served again");
        }
        served::reopen(self, &item).await;
        self.write_items().insert(id, item);
        Ok(())
    }

    /// Makes a new item with a replica of `spec`.
    pub(crate) async fn create(&self, spec: Spec, record: Record) -> Result<Arc<Item>, Fault> {
        let id = record.item.clone();
        let place = self.place(&id);
        let journal = place.retention.clone();
        let replica = self.on_disk(&id, move |open| Replica::create(&place, &spec, open)).await?;
        let file = self.record_file(&id);
        record.save(&file).map_err(|error| {
            Fault::new(code::REPLICA_IO, format!("the record of {id} could not be written"), error.to_string())
        })?;
        let item = Arc::new(Item::new(replica, record, file, journal));
        self.write_folded().remove(&id);
        self.write_items().insert(id, item.clone());
        self.apply_keeping(&item);
        Ok(item)
    }

    /// Takes an item away whose record says that it is folded; the record stays.
    pub(crate) fn bury(&self, item: &ItemId) {
        if let Some(item) = self.write_items().remove(item) {
            self.write_folded().insert(item.id(), item.record());
        }
    }

    /// What is left of an item that was folded.
    pub(crate) fn folded(&self, item: &ItemId) -> Option<Left> {
        let folded = self.write_folded();
        let found = folded.get(item)?;
        Some(Left { lineage: found.lineage, record: found.folded.clone()? })
    }

    /// Forgets that an item was folded here.
    pub(crate) fn forget_folded(&self, item: &ItemId) -> Result<(), Fault> {
        if self.write_folded().remove(item).is_some() {
            std::fs::remove_file(self.record_file(item)).map_err(|error| {
                Fault::new(code::REPLICA_IO, format!("the record of {item} cannot be removed"), error.to_string())
            })?;
        }
        Ok(())
    }

    /// Deletes the journal of an item that is not open; its disks outside stay. Nothing is done when there is none.
    pub(crate) async fn delete_journal(&self, item: &ItemId) -> Result<(), Fault> {
        let (place, id) = (self.place(item), item.clone());
        blocking(move || match Replica::delete_at(&place) {
            Ok(()) | Err(ReplicaError::Absent(_)) => Ok(()),
            Err(error) => Err(error.fault(&id)),
        })
        .await
    }

    /// Ends the programs through which an item's disks outside were open, be it for this process or a dead predecessor.
    pub(crate) async fn end_programs(&self, item: &ItemId, disks: &[protocol::DiskKey]) -> Result<(), Fault> {
        for disk in disks {
            outside::forget_program(&self.socket(item, disk.as_str())).await.map_err(|error| {
                Fault::new(code::REPLICA_IO, format!("{disk} of {item} cannot be let go of"), error.to_string())
            })?;
        }
        Ok(())
    }

    pub(crate) fn record_file(&self, item: &ItemId) -> PathBuf {
        self.data_dir.join("items").join(format!("{item}.json"))
    }

    fn write_folded(&self) -> std::sync::MutexGuard<'_, BTreeMap<ItemId, Record>> {
        self.folded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The item, if it is kept here.
    pub(crate) fn get(&self, item: &ItemId) -> Option<Arc<Item>> {
        self.items.read().unwrap_or_else(PoisonError::into_inner).get(item).cloned()
    }

    /// Goes by these from now on. An item that is not named stays as it is.
    pub(crate) fn keep_by(&self, keepings: Vec<Keeping>) {
        // Written down first: an item that is being made looks here once it can be found.
        *self.keepings.lock().unwrap_or_else(PoisonError::into_inner) = keepings;
        let items = self.all();
        items.iter().for_each(|item| self.apply_keeping(item));
    }

    /// Has an item go by what control last said of it.
    fn apply_keeping(&self, item: &Item) {
        let (id, lineage) = (item.id(), item.record().lineage);
        let found = {
            let keepings = self.keepings.lock().unwrap_or_else(PoisonError::into_inner);
            let found = keepings.iter().find(|keeping| keeping.item == id && keeping.lineage == lineage);
            found.cloned()
        };
        if let Some(keeping) = found
            && let Err(fault) =
                item.keep_by(&keeping.retention, keeping.leaf_bytes).and_then(|()| item.remember(&keeping.manifest))
        {
            tracing::warn!(item = %id, %fault, "what control says of an item could not be written down");
        }
    }

    /// All items whose replicas are kept here.
    pub(crate) fn all(&self) -> Vec<Arc<Item>> {
        self.items.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// The item.
    pub(crate) fn must(&self, item: &ItemId) -> Result<Arc<Item>, Fault> {
        self.get(item).ok_or_else(|| {
            Fault::new(
                code::REPLICA_ABSENT,
                format!("there is no replica of {item} here"),
                "it was never made, or was dropped",
            )
        })
    }

    /// Takes the item away; its replica can then be deleted once nobody uses it any more.
    pub(crate) fn remove(&self, item: &ItemId) -> Option<Arc<Item>> {
        self.write_items().remove(item)
    }

    /// Serves all disks of a point. Gives their URIs in the replica's order.
    pub(crate) async fn serve_view(&self, item: &Arc<Item>, point: Attempt, what_for: Use) -> Result<Vec<Uri>, Fault> {
        let (replica, kept) = (item.replica.clone(), item.clone());
        let view = blocking(move || replica.view(point).map_err(|error| kept.fault(&error))).await?;
        let mut uris = Vec::new();
        for (index, disk) in item.replica.disks().iter().enumerate() {
            let name = view::name(&item.id(), &disk.key, point, what_for);
            self.views.add(&name, ViewExport::new(view.clone(), index));
            uris.push(Uri { address: self.views.local_address(), export: name });
        }
        Ok(uris)
    }

    /// Stops serving a point and waits until nobody holds it.
    pub(crate) async fn withdraw_view(&self, item: &Item, point: Attempt, what_for: Use) {
        for disk in item.replica.disks() {
            self.views.withdraw(&view::name(&item.id(), &disk.key, point, what_for)).await;
        }
    }

    /// Where points of an item are written out, one folder for each. No item can be called `@exported`.
    pub(crate) fn exported(&self, item: &ItemId) -> PathBuf {
        self.retention.join("@exported").join(item.as_str())
    }

    /// Where an overlay over a view of a disk is kept; `what` tells whose it is.
    pub(crate) fn overlay(&self, item: &ItemId, disk: &protocol::DiskKey, what: &str) -> PathBuf {
        self.data_dir.join("raised").join(format!("{item}-{disk}-{what}.qcow2"))
    }

    /// A socket path for a helper of `item`; short, since unix sockets allow about a hundred bytes.
    pub(crate) fn socket(&self, item: &ItemId, what: &str) -> PathBuf {
        self.data_dir.join(format!("{item}-{what}.sock"))
    }

    /// The programs that serve writable views, by item and number.
    pub(crate) fn scratch(&self) -> MutexGuard<'_, BTreeMap<(ItemId, i64), Vec<QemuNbd>>> {
        self.scratch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends sessions and views, and closes replicas: their helpers end with them.
    pub(crate) async fn close(&self) {
        let items = std::mem::take(&mut *self.write_items());
        for item in items.values() {
            item.end_tending().await;
            let item = item.clone();
            if let Err(fault) = blocking(move || item.rest()).await {
                tracing::warn!(%fault, "an open epoch could not be rolled back; the next start does it");
            }
        }
        // They read from the views.
        let programs = std::mem::take(&mut *self.scratch());
        for program in programs.into_values().flatten() {
            if let Err(error) = program.stop().await {
                tracing::warn!(%error, "a writable view could not be closed in order");
            }
        }
        self.views.clone().stop().await;
        for (_, item) in items {
            // Whoever still holds the item is a session or an order that is ending.
            let mut held = Some(item);
            for _ in 0..CLOSING_TRIES {
                let Some(item) = held.take() else { break };
                match Arc::try_unwrap(item) {
                    Ok(item) => return_to_disk(item).await,
                    Err(item) => {
                        held = Some(item);
                        tokio::time::sleep(CLOSING_PAUSE).await;
                    }
                }
            }
        }
    }

    fn write_items(&self) -> std::sync::RwLockWriteGuard<'_, BTreeMap<ItemId, Arc<Item>>> {
        self.items.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn place(&self, item: &ItemId) -> Place {
        Place {
            directory: self.data_dir.join("replicas").join(item.as_str()),
            retention: self.retention.join(item.as_str()),
        }
    }

    /// Runs `work` on a blocking thread with an opener for all kinds of disks.
    async fn on_disk<T: Send + 'static>(
        &self,
        item: &ItemId,
        work: impl FnOnce(replica::Opener<'_>) -> Result<T, replica::ReplicaError> + Send + 'static,
    ) -> Result<T, Fault> {
        let (runtime, id, directory) = (Handle::current(), item.clone(), self.data_dir.clone());
        blocking(move || {
            let open = |disk: &DiskRecord, inside: &Path| -> io::Result<Arc<dyn Disk>> {
                match &disk.home {
                    DiskHome::Inside => replica::open_inside(disk, inside),
                    DiskHome::Outside { path, format } => {
                        // As in `socket`, by which `end_programs` finds it.
                        let socket = directory.join(format!("{id}-{}.sock", disk.key));
                        let note = inside.join(disk.rest_name());
                        Ok(Arc::new(OutsideDisk::open(path, *format, socket, &note, runtime.clone())?))
                    }
                }
            };
            work(&open).map_err(|error| error.fault(&id))
        })
        .await
    }
}

/// How long whoever still holds an item is waited for when this process ends.
const CLOSING_TRIES: u32 = 100;
const CLOSING_PAUSE: std::time::Duration = std::time::Duration::from_millis(20);

/// Closes the replica on a blocking thread, where its disks may wait for their programs.
async fn return_to_disk(item: Item) {
    if tokio::task::spawn_blocking(move || drop(item)).await.is_err() {
        tracing::warn!("a replica could not be closed in order");
    }
}

/// Runs disk work on a blocking thread.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Fault> + Send + 'static,
) -> Result<T, Fault> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|panic| {
        Err(Fault::new(code::INTERNAL, "the master target failed while it worked on a disk", panic.to_string()))
    })
}
