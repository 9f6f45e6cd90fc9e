//! XDR (RFC 4506) as sFlow uses it: big-endian words, opaque data with a length, padded to four bytes.
//!
//! Every read checks what is left; nothing is allocated by a length from the wire.

use weir_schemas::Address;

/// What is left of a structure.
#[derive(Debug, Clone, Copy)]
pub(super) struct Xdr<'a>(pub(super) &'a [u8]);

impl<'a> Xdr<'a> {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    #[inline]
    pub(super) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    #[inline]
    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    /// So many words, all or none: one look at what is left.
    #[inline]
    pub(super) fn u32s<const N: usize>(&mut self) -> Option<[u32; N]> {
        let (head, rest) = self.0.split_at_checked(4 * N)?;
        self.0 = rest;
        let mut words = [0; N];
        for (word, octets) in words.iter_mut().zip(head.as_chunks::<4>().0) {
            *word = u32::from_be_bytes(*octets);
        }
        Some(words)
    }

    #[inline]
    pub(super) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    #[inline]
    pub(super) fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(head)
    }

    /// A structure with its length before it, as samples and records are: not padded, the length says it all.
    #[inline]
    pub(super) fn structure(&mut self) -> Option<&'a [u8]> {
        let length = self.u32()?;
        self.take(usize::try_from(length).ok()?)
    }

    /// The format of a structure, and the structure.
    #[inline]
    pub(super) fn formatted(&mut self) -> Option<(u32, Xdr<'a>)> {
        let [format, length] = self.u32s()?;
        Some((format, Xdr(self.take(usize::try_from(length).ok()?)?)))
    }

    /// Opaque data or a string: the length without the padding, which may be missing at the end.
    pub(super) fn opaque(&mut self) -> Option<&'a [u8]> {
        let data = self.structure()?;
        let padding = data.len().wrapping_neg() & 3;
        self.0 = self.0.get(padding..).unwrap_or_default();
        Some(data)
    }

    /// `n` words, as their bytes.
    pub(super) fn words(&mut self, n: u32) -> Option<&'a [u8]> {
        self.take(usize::try_from(n).ok()?.checked_mul(4)?)
    }

    /// A list of words with its length before it.
    pub(super) fn list(&mut self) -> Option<&'a [u8]> {
        let n = self.u32()?;
        self.words(n)
    }

    /// An address; `Some(None)` where its type says that it is unknown.
    #[inline]
    pub(super) fn address(&mut self) -> Option<Option<Address>> {
        match self.u32()? {
            0 => Some(None),
            1 => Some(Some(Address::v4(self.array()?))),
            2 => Some(Some(Address::v6(self.array()?))),
            _ => None,
        }
    }
}

/// The words of a list.
pub(super) fn words(bytes: &[u8]) -> impl DoubleEndedIterator<Item = u32> + '_ {
    bytes.as_chunks::<4>().0.iter().map(|word| u32::from_be_bytes(*word))
}
