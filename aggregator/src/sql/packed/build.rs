//! The first half: the rows of one input, grouped as far as a table in the cache can, in 256 parts by their hash.

use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use datafusion::arrow::array::ArrayRef;
use datafusion::common::{DataFusionError, Result};
use datafusion::execution::disk_manager::DiskManager;
use datafusion::execution::memory_pool::MemoryReservation;
use datafusion::execution::spill_file::SpillFile;

use super::rows::{Groups, Layout};

/// Parts by the upper eight bits of the hash.
pub(super) const PARTS: usize = 256;
/// Groups that the first table has room for at first: the fewer it needs, the nearer to the processor it lies.
const FIRST_GROUPS: usize = 2_048;
/// Words of the first piece of a part, and of the largest; each is twice the one before it.
const FIRST_CHUNK_WORDS: usize = 256;
const CHUNK_WORDS: usize = 4_096;

/// How much is grouped before it is put aside.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    /// Groups of the first table: it stays in the cache.
    pub(super) groups: usize,
    /// Where a full table holds more than half as many groups as it took rows, so many rows pass by it.
    pub(super) bypass_rows: usize,
}

impl Default for Sizes {
    fn default() -> Self {
        Sizes { groups: 65_536, bypass_rows: 1 << 20 }
    }
}

impl Sizes {
    /// Groups that the table has room for at first.
    fn first(self) -> usize {
        FIRST_GROUPS.min(self.groups)
    }
}

/// Rows on disk, by part.
struct Spill {
    file: Arc<dyn SpillFile>,
    writer: Box<dyn datafusion::execution::spill_file::SpillWriter>,
    /// Part, offset and bytes of each piece.
    pieces: Vec<(usize, u64, usize)>,
    end: u64,
}

impl Spill {
    /// Writes rows of a part, if there are any, and empties `bytes`.
    fn put(&mut self, part: usize, bytes: &mut Vec<u8>) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.writer.write_all(bytes).map_err(DataFusionError::IoError)?;
        self.pieces.push((part, self.end, bytes.len()));
        self.end += bytes.len() as u64;
        bytes.clear();
        Ok(())
    }
}

/// Groups one input.
pub(super) struct Builder {
    layout: Arc<Layout>,
    sizes: Sizes,
    table: Groups,
    /// Groups that memory is reserved for in the table.
    room: usize,
    /// Rows that the table took since it was empty.
    taken: usize,
    bypass: usize,
    parts: Vec<Vec<Vec<u64>>>,
    reservation: MemoryReservation,
    disk: Arc<DiskManager>,
    spill: Option<Spill>,
    packed: Vec<u64>,
    places: Vec<u32>,
}

/// What the first half leaves.
pub(super) struct Built {
    parts: Vec<Vec<Vec<u64>>>,
    spill: Option<Spill>,
    /// Held until all parts are merged.
    reservation: MemoryReservation,
}

impl Builder {
    pub(super) fn new(
        layout: Arc<Layout>,
        sizes: Sizes,
        reservation: MemoryReservation,
        disk: Arc<DiskManager>,
    ) -> Result<Builder> {
        let room = sizes.first();
        reservation.try_grow(Groups::bytes(room, layout.words))?;
        Ok(Builder {
            table: Groups::with_capacity(room),
            room,
            layout,
            sizes,
            taken: 0,
            bypass: 0,
            parts: vec![Vec::new(); PARTS],
            reservation,
            disk,
            spill: None,
            packed: Vec::new(),
            places: Vec::new(),
        })
    }

    /// Takes rows; at most as many at once as the table has groups.
    pub(super) fn add(&mut self, keys: &[ArrayRef], values: &[Option<ArrayRef>], count: usize) -> Result<()> {
        let layout = Arc::clone(&self.layout);
        layout.pack(keys, count, &mut self.packed)?;
        if self.bypass > 0 {
            self.bypass = self.bypass.saturating_sub(count);
            self.places.clear();
            self.places.extend(0..u32::try_from(count).unwrap_or(u32::MAX));
            for (at, values) in values.iter().enumerate() {
                layout.accumulate(at, &mut self.packed, &self.places, values.as_ref())?;
            }
            let packed = std::mem::take(&mut self.packed);
            let put = self.put_aside(&packed);
            self.packed = packed;
            return put;
        }
        if !self.has_room(self.table.len() + count) {
            self.flush()?;
        }
        self.table.place_all(&layout, &self.packed, &mut self.places);
        self.taken += count;
        for (at, values) in values.iter().enumerate() {
            layout.accumulate(at, &mut self.table.rows, &self.places, values.as_ref())?;
        }
        Ok(())
    }

    /// Whether the table may have so many groups; asks for the memory.
    fn has_room(&mut self, groups: usize) -> bool {
        if groups > self.room && groups <= self.sizes.groups {
            let room = (self.room * 2).min(self.sizes.groups);
            let more = Groups::bytes(room, self.layout.words) - Groups::bytes(self.room, self.layout.words);
            if self.reservation.try_grow(more).is_ok() {
                self.room = room;
            }
        }
        groups <= self.room
    }

    /// Empties the table into the parts.
    fn flush(&mut self) -> Result<()> {
        if self.table.len() * 2 > self.taken {
            self.bypass = self.sizes.bypass_rows;
        }
        let room = self.room;
        let mut rows = std::mem::take(&mut self.table.rows);
        self.table.clear();
        self.put_aside(&rows)?;
        // unless the memory was given back
        if self.room == room {
            rows.clear();
            self.table.rows = rows;
        }
        self.taken = 0;
        Ok(())
    }

    /// Goes on with a table as at first: what a consumer may have becomes less with every other that comes.
    fn give_back(&mut self) {
        let first = self.sizes.first();
        let bytes = |groups| Groups::bytes(groups, self.layout.words);
        self.reservation.shrink(bytes(self.room) - bytes(first));
        self.room = first;
        // rows that came between a flush and the rows that pass by
        let rows = std::mem::take(&mut self.table.rows);
        self.table = Groups::with_capacity(first);
        self.table.merge_all(&self.layout, &rows);
    }

    /// Puts rows into the parts.
    fn put_aside(&mut self, rows: &[u64]) -> Result<()> {
        let words = self.layout.words;
        for row in rows.chunks_exact(words) {
            let part = (self.layout.hash(&row[..self.layout.key_words]) >> 56) as usize;
            if self.parts[part].last().is_none_or(|last| last.len() + words > last.capacity()) {
                self.new_chunk(part)?;
            }
            if let Some(last) = self.parts[part].last_mut() {
                last.extend_from_slice(row);
            }
        }
        Ok(())
    }

    #[cold]
    fn new_chunk(&mut self, part: usize) -> Result<()> {
        let words = self.parts[part].last().map_or(FIRST_CHUNK_WORDS, |last| last.capacity() * 2);
        let words = words.min(CHUNK_WORDS).max(self.layout.words);
        if self.reservation.try_grow(words * 8).is_err() {
            if self.disk.tmp_files_enabled() {
                self.spill()?;
            }
            if self.reservation.try_grow(words * 8).is_err() {
                self.give_back();
                // its error says who has the memory
                self.reservation.try_grow(words * 8)?;
            }
        }
        self.parts[part].push(Vec::with_capacity(words));
        Ok(())
    }

    /// Moves the parts to disk.
    fn spill(&mut self) -> Result<()> {
        if self.spill.is_none() {
            let file = self.disk.create_tmp_file("grouping")?;
            let writer = file.open_writer()?;
            self.spill = Some(Spill { file, writer, pieces: Vec::new(), end: 0 });
        }
        let Some(spill) = &mut self.spill else { return Ok(()) };
        let mut bytes = Vec::with_capacity(CHUNK_WORDS * 16);
        for (part, chunks) in self.parts.iter_mut().enumerate() {
            for rows in chunks.drain(..) {
                rows.iter().for_each(|word| bytes.extend_from_slice(&word.to_le_bytes()));
                free(&self.reservation, &rows);
                if bytes.len() >= CHUNK_WORDS * 8 {
                    spill.put(part, &mut bytes)?;
                }
            }
            spill.put(part, &mut bytes)?;
        }
        Ok(())
    }

    pub(super) fn finish(mut self) -> Result<Built> {
        self.flush()?;
        self.reservation.shrink(Groups::bytes(self.room, self.layout.words));
        // merging wants room: where it was scarce, or would be, everything goes to disk
        let room = self.reservation.size() / 8;
        if self.spill.is_some() || self.reservation.try_grow(room).is_err() {
            if self.disk.tmp_files_enabled() {
                self.spill()?;
            }
        } else {
            self.reservation.shrink(room);
        }
        if let Some(spill) = &mut self.spill {
            spill.writer.flush().map_err(DataFusionError::IoError)?;
            spill.writer.finish()?;
        }
        Ok(Built { parts: self.parts, spill: self.spill, reservation: self.reservation })
    }
}

impl Built {
    /// Takes the rows of a part, and frees what they held.
    pub(super) fn take(&mut self, part: usize, layout: &Layout) -> Result<Vec<Vec<u64>>> {
        let mut rows = std::mem::take(&mut self.parts[part]);
        rows.iter().for_each(|rows| free(&self.reservation, rows));
        let Some(spill) = &self.spill else { return Ok(rows) };
        let path = spill
            .file
            .path()
            .ok_or_else(|| DataFusionError::Internal("grouping was put aside where no file is".to_owned()))?;
        let file = std::fs::File::open(path).map_err(DataFusionError::IoError)?;
        for (_, offset, length) in spill.pieces.iter().filter(|(of, ..)| *of == part) {
            let mut bytes = vec![0; *length];
            file.read_exact_at(&mut bytes, *offset).map_err(DataFusionError::IoError)?;
            let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap_or_default());
            rows.push(bytes.chunks_exact(8).map(word).collect());
        }
        debug_assert!(rows.iter().all(|rows| rows.len() % layout.words == 0));
        Ok(rows)
    }
}

/// No more than is held: a vector may have more room than was asked for.
fn free(reservation: &MemoryReservation, chunk: &Vec<u64>) {
    reservation.shrink((chunk.capacity() * 8).min(reservation.size()));
}
