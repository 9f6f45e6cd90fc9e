//! Reads the embedded log while another process writes it.
//!
//! The format is [`weir_schemas::segment`]. What is visible is what the writer's `head` mark speaks of; the mark is looked
//! at every [`LOOK_EVERY`], which costs two small reads a partition. Damage costs the frames it hits: they come as
//! [`Payload::Foreign`]; offsets that are not there at all come as [`Payload::Gap`].

mod partition;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use partition::PartitionReader;
use weir_schemas::segment::{COMMITTED_FILE, HEAD_FILE, Mark, partition_number};

use super::on_thread::OnThread;
use super::{LogMessage, Positions, Source, SourceError};

/// How often a quiet log is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(40);
/// How long a poll waits for messages.
const WAIT: Duration = Duration::from_millis(200);
/// How often new partitions are looked for.
const LIST_EVERY: Duration = Duration::from_secs(1);

/// The reader of the embedded log.
#[derive(Debug)]
pub struct EmbeddedSource {
    reader: OnThread<Reader, Result<Vec<LogMessage>, SourceError>>,
    committed: Arc<Mutex<CommittedMarks>>,
    end: Positions,
}

impl EmbeddedSource {
    /// Opens the log in `directory`, which need not exist yet, to read on from `positions`.
    pub fn open(directory: &Path, positions: Positions) -> EmbeddedSource {
        let mut committed = CommittedMarks { directory: directory.to_owned(), ..CommittedMarks::default() };
        // a writer that opens a new log here begins beyond what the store knows
        if let Err(error) = committed.write(&positions) {
            tracing::warn!(log = %directory.display(), "cannot tell the log how far the store is: {error}");
        }
        EmbeddedSource {
            reader: OnThread::new(Reader::new(directory, positions)),
            committed: Arc::new(Mutex::new(committed)),
            end: Positions::new(),
        }
    }
}

#[async_trait::async_trait]
impl Source for EmbeddedSource {
    async fn poll(&mut self, max_bytes: usize) -> Result<Vec<LogMessage>, SourceError> {
        let (reader, messages) = self.reader.run(move |reader| reader.poll(max_bytes)).await?;
        self.end = reader.end();
        messages
    }

    async fn committed(&mut self, positions: &Positions) -> Result<(), SourceError> {
        let (marks, positions) = (Arc::clone(&self.committed), positions.clone());
        let written = tokio::task::spawn_blocking(move || marks.lock().write(&positions)).await;
        let written = written.map_err(|error| SourceError::Fatal(error.to_string()))?;
        written.map_err(|error| {
            SourceError::Unavailable(format!("cannot tell the log how far the store is: {error}"))
        })
    }

    fn end(&self) -> Positions {
        self.end.clone()
    }
}

/// How far the log in `directory` has been committed by whoever reads it.
pub fn committed(directory: &Path) -> io::Result<Positions> {
    marks(directory, COMMITTED_FILE)
}

/// How far the log in `directory` goes.
pub fn ends(directory: &Path) -> io::Result<Positions> {
    marks(directory, HEAD_FILE)
}

fn marks(directory: &Path, file: &str) -> io::Result<Positions> {
    let mut positions = Positions::new();
    for number in list_partitions(directory)? {
        if let Some(mark) = read_mark(&directory.join(number.to_string()).join(file))? {
            positions.insert(number, mark.end);
        }
    }
    Ok(positions)
}

/// The `committed` marks: what the writer may delete.
#[derive(Debug, Default)]
struct CommittedMarks {
    directory: PathBuf,
    marks: BTreeMap<u32, Mark>,
}

impl CommittedMarks {
    fn write(&mut self, positions: &Positions) -> io::Result<()> {
        for (&number, &end) in positions {
            let path = self.directory.join(number.to_string());
            let mark = self.marks.get(&number).copied();
            if mark.is_some_and(|mark| mark.end == end) {
                continue;
            }
            fs::create_dir_all(&path)?;
            let mut options = File::options();
            options.create(true).truncate(false).read(true).write(true);
            let file = options.open(path.join(COMMITTED_FILE))?;
            let before = match mark {
                Some(mark) => mark,
                None => Mark::read(&file)?.unwrap_or_default(),
            };
            let mark = Mark { sequence: before.sequence + 1, end, ..Mark::default() };
            let (at, bytes) = mark.encode();
            file.write_all_at(&bytes, at)?;
            self.marks.insert(number, mark);
        }
        Ok(())
    }
}

/// The part that does file I/O, on a thread of its own.
#[derive(Debug)]
struct Reader {
    directory: PathBuf,
    start: Positions,
    partitions: BTreeMap<u32, PartitionReader>,
    listed: Option<Instant>,
    /// The partition that the next poll begins with.
    turn: u32,
}

impl Reader {
    fn new(directory: &Path, start: Positions) -> Reader {
        Reader { directory: directory.to_owned(), start, partitions: BTreeMap::new(), listed: None, turn: 0 }
    }

    fn end(&self) -> Positions {
        let known = self.partitions.iter().filter(|(_, partition)| partition.mark().is_some());
        known.filter_map(|(number, partition)| Some((*number, partition.mark()?.end))).collect()
    }

    fn poll(&mut self, max_bytes: usize) -> Result<Vec<LogMessage>, SourceError> {
        let deadline = Instant::now() + WAIT;
        loop {
            let mut messages = Vec::new();
            let read = self.read(max_bytes, &mut messages);
            // what was read before an error is not lost: the error comes again with the next poll
            if !messages.is_empty() {
                return Ok(messages);
            }
            read?;
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(messages);
            }
            std::thread::sleep(left.min(LOOK_EVERY));
        }
    }

    fn read(&mut self, max_bytes: usize, messages: &mut Vec<LogMessage>) -> Result<(), SourceError> {
        let unavailable =
            |error: io::Error| SourceError::Unavailable(format!("`{}`: {error}", self.directory.display()));
        if self.listed.is_none_or(|at| at.elapsed() >= LIST_EVERY) {
            let known = list_partitions(&self.directory).map_err(unavailable)?;
            for number in known {
                self.partitions.entry(number).or_insert_with(|| {
                    let path = self.directory.join(number.to_string());
                    PartitionReader::new(number, path, self.start.get(&number).copied())
                });
            }
            self.listed = Some(Instant::now());
        }
        let turn = self.turn;
        let order: Vec<u32> = self
            .partitions
            .range(turn..)
            .chain(self.partitions.range(..turn))
            .map(|(number, _)| *number)
            .collect();
        self.turn = order.get(1).copied().unwrap_or(0);
        let mut budget = max_bytes.max(1);
        for number in order {
            let Some(partition) = self.partitions.get_mut(&number) else { continue };
            let mark = read_mark(&self.directory.join(number.to_string()).join(HEAD_FILE));
            if let Some(mark) = mark.map_err(unavailable)? {
                partition.read(mark, &mut budget, messages)?;
            }
            if budget == 0 {
                break;
            }
        }
        Ok(())
    }
}

fn list_partitions(directory: &Path) -> io::Result<Vec<u32>> {
    match fs::read_dir(directory) {
        Ok(entries) => entries
            .map(|entry| Ok(entry?.file_name().to_str().and_then(partition_number)))
            .filter_map(Result::transpose)
            .collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn read_mark(path: &Path) -> io::Result<Option<Mark>> {
    match File::open(path) {
        Ok(file) => Mark::read(&file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
