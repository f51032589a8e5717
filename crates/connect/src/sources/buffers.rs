//! Buffers that are read into, given away as shared bytes, and come back when nobody holds those any
//! more: memory that was used a moment ago is still in the processor's caches, and already mapped.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

/// Buffers that wait, at the most.
const KEPT: usize = 16;
/// A larger buffer was for one huge line, and is not kept for the next one.
const LARGEST_BYTES: usize = 4 << 20;

/// A stock of empty buffers; clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Buffers {
    stock: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Buffers {
    /// An empty buffer with room for `capacity` bytes.
    pub(crate) fn take(&self, capacity: usize) -> Vec<u8> {
        let mut buffer = self.stock.lock().pop().unwrap_or_default();
        buffer.reserve_exact(capacity);
        buffer
    }

    /// The bytes of a buffer, which comes back once the last holder has dropped them.
    pub(crate) fn share(&self, bytes: Vec<u8>) -> Bytes {
        Bytes::from_owner(Lent {
            bytes,
            stock: self.clone(),
        })
    }
}

struct Lent {
    bytes: Vec<u8>,
    stock: Buffers,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut stock = self.stock.stock.lock();
        if stock.len() < KEPT && self.bytes.capacity() <= LARGEST_BYTES {
            let mut bytes = std::mem::take(&mut self.bytes);
            bytes.clear();
            stock.push(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_when_its_last_holder_is_gone() {
        let buffers = Buffers::default();
        let mut first = buffers.take(100);
        first.extend_from_slice(b"abc");
        let place = first.as_ptr();
        let bytes = buffers.share(first);
        let part = bytes.slice(1..);
        drop(bytes);
        assert!(buffers.stock.lock().is_empty(), "a part is still held");
        assert_eq!(&part[..], b"bc");
        drop(part);
        let again = buffers.take(50);
        assert!(again.is_empty() && again.as_ptr() == place);
    }
}
