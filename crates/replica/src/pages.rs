//! Pages of indexes that were read lately, so that the next look-up nearby reads nothing.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

/// As many pages are kept (4 KiB each): the upper part of every search in the some eighty indexes that a look-up may ask.
const MOST_PAGES: usize = 2048;

/// Decoded pages by what they are; the one that came first goes first.
pub(crate) struct PageCache<K, E> {
    kept: Mutex<Kept<K, E>>,
}

struct Kept<K, E> {
    pages: HashMap<K, Arc<[E]>>,
    order: VecDeque<K>,
}

impl<K, E> Default for PageCache<K, E> {
    fn default() -> PageCache<K, E> {
        PageCache { kept: Mutex::new(Kept { pages: HashMap::new(), order: VecDeque::new() }) }
    }
}

impl<K: Copy + Eq + Hash, E> PageCache<K, E> {
    /// The page `key`, from memory or as `read` reads it. Pages never change: a key is used for one page only.
    pub fn get<X>(&self, key: K, read: impl FnOnce() -> Result<Arc<[E]>, X>) -> Result<Arc<[E]>, X> {
        let kept = || self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(page) = kept().pages.get(&key) {
            return Ok(page.clone());
        }
        let page = read()?;
        let mut kept = kept();
        if kept.pages.insert(key, page.clone()).is_none() {
            kept.order.push_back(key);
            if kept.order.len() > MOST_PAGES
                && let Some(oldest) = kept.order.pop_front()
            {
                kept.pages.remove(&oldest);
            }
        }
        Ok(page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_read_once_until_too_many_others_were() {
        let pages = PageCache::<u64, u64>::default();
        let reads = std::cell::Cell::new(0);
        let get = |key: u64| {
            let read = || {
                reads.set(reads.get() + 1);
                Ok::<Arc<[u64]>, ()>(Arc::new([key]))
            };
            assert_eq!(*pages.get(key, read).unwrap(), [key]);
        };
        get(7);
        get(7);
        assert_eq!(reads.get(), 1);
        (100..100 + MOST_PAGES as u64).for_each(get);
        get(7);
        assert_eq!(reads.get(), 2 + MOST_PAGES);
        assert_eq!(pages.kept.lock().unwrap().pages.len(), MOST_PAGES);
    }
}
