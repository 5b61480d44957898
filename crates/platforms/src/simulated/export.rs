//! The export of one disk of an open cut: a copy, which stops being readable when the cut breaks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use nbd::{ErrorCode, Export};
use protocol::extent::BLOCK;

/// A disk as it was at a cut.
pub(super) struct Past {
    pub bytes: Bytes,
    pub broken: Arc<AtomicBool>,
}

#[async_trait]
impl Export for Past {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_only(&self) -> bool {
        true
    }

    async fn read(&self, offset: u64, length: u32) -> Result<Bytes, ErrorCode> {
        let end = offset.saturating_add(length.into());
        // The real platform would answer a read across blocks, and could lie: here it is told to its face.
        if length == 0 || offset / BLOCK != (end - 1) / BLOCK {
            return Err(ErrorCode::Invalid);
        }
        if self.broken.load(Ordering::SeqCst) || end > self.size() {
            return Err(ErrorCode::Io);
        }
        Ok(self.bytes.slice(offset as usize..end as usize))
    }
}
