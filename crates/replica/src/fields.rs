//! Little-endian numbers in the journal's binary layouts, written without padding and read without trust.

/// Appends numbers to a buffer.
pub(crate) trait Put {
    fn put_u32(&mut self, value: u32);
    fn put_u64(&mut self, value: u64);
}

impl Put for Vec<u8> {
    fn put_u32(&mut self, value: u32) {
        self.extend_from_slice(&value.to_le_bytes());
    }
    fn put_u64(&mut self, value: u64) {
        self.extend_from_slice(&value.to_le_bytes());
    }
}

/// Takes numbers from the front of a slice; none when it is too short.
pub(crate) struct Fields<'a>(pub &'a [u8]);

impl Fields<'_> {
    pub fn bytes<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*first)
    }
    pub fn u32(&mut self) -> Option<u32> {
        self.bytes().map(u32::from_le_bytes)
    }
    pub fn u64(&mut self) -> Option<u64> {
        self.bytes().map(u64::from_le_bytes)
    }
}

/// Whether every byte is zero.
pub(crate) fn blank(bytes: &[u8]) -> bool {
    let (wide, rest) = bytes.as_chunks::<16>();
    wide.iter().all(|word| u128::from_ne_bytes(*word) == 0) && rest.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_set_bit_anywhere_is_not_blank() {
        for length in [1usize, 15, 16, 17, 512] {
            let mut bytes = vec![0; length];
            assert!(blank(&bytes));
            for at in 0..length {
                bytes[at] = 1;
                assert!(!blank(&bytes));
                bytes[at] = 0;
            }
        }
    }

    #[test]
    fn a_short_slice_gives_none_and_no_panic() {
        let mut fields = Fields(&[1, 0, 0, 0, 2]);
        assert_eq!(fields.u32(), Some(1));
        assert_eq!(fields.u64(), None);
    }
}
