//! What the decoders have learned (templates, sampling rates), kept in a file so that a restart, a crash too, decodes at
//! once: `<data-dir>/state/templates.json`, written to a new file, synced, renamed into place.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::decode::{DecodeConfig, SharedState};

/// A refresh of a known template is no change; but its time is saved now and then, lest it looks expired.
const LONGEST: Duration = Duration::from_secs(600);

/// The file, and what of the state is in it.
#[derive(Debug)]
pub struct StateFile {
    path: PathBuf,
    /// [`SharedState::changes`] when it was saved.
    saved_changes: Option<u64>,
    saved_at: Instant,
}

impl StateFile {
    /// The file of a collector on `data_dir`.
    pub fn new(data_dir: &Path) -> StateFile {
        let path = data_dir.join("state").join("templates.json");
        StateFile { path, saved_changes: None, saved_at: Instant::now() }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the saved state into `shared`; returns the number of templates. A file that cannot be understood is put
    /// aside and told of: the exporters will send their templates again.
    pub fn restore(&mut self, shared: &SharedState, config: &DecodeConfig) -> io::Result<usize> {
        let bytes = match fs::read(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            result => result?,
        };
        match shared.restore(&bytes, config) {
            Ok(templates) => {
                self.saved_changes = Some(shared.changes());
                Ok(templates)
            }
            Err(error) => {
                let aside = self.path.with_extension("json.unreadable");
                tracing::warn!(%error, aside = %aside.display(), "the saved templates are put aside");
                fs::rename(&self.path, aside)?;
                Ok(0)
            }
        }
    }

    /// Saves the state if it has changed; whether it did.
    pub fn save(&mut self, shared: &SharedState) -> io::Result<bool> {
        // Read before the snapshot: what changes meanwhile is saved again next time.
        let changes = shared.changes();
        let stale = self.saved_at.elapsed() > LONGEST && shared.templates() > 0;
        if self.saved_changes.unwrap_or(0) == changes && !stale {
            return Ok(false);
        }
        replace(&self.path, &shared.snapshot())?;
        (self.saved_changes, self.saved_at) = (Some(changes), Instant::now());
        Ok(true)
    }
}

/// Puts a file with `bytes` in the place of `path`: whatever happens, the old one or the new one is there, whole.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(directory)?;
    let new = path.with_extension("json.new");
    let mut file = File::create(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::{Batches, DatagramMeta, Decoder};
    use crate::generate::{Generator, GeneratorConfig, Protocol};
    use std::sync::Arc;

    /// Data of an exporter, and the templates that came before it.
    fn ipfix(datagrams: usize) -> Vec<Vec<u8>> {
        let config = GeneratorConfig {
            protocols: vec![Protocol::Ipfix],
            exporters: 1,
            start_us: 1_700_000_000_000_000,
            ..GeneratorConfig::default()
        };
        let mut generator = Generator::new(&config);
        let mut buffer = Vec::new();
        let next = |n: usize| {
            let now = config.start_us + 1_000 * i64::try_from(n).unwrap();
            generator.next(now, &mut buffer).map(|_| buffer.clone())
        };
        (0..datagrams).map_while(next).collect()
    }

    fn decode(shared: &Arc<SharedState>, datagrams: &[Vec<u8>]) -> usize {
        let mut decoder = Decoder::new(Arc::new(DecodeConfig::default()), Arc::clone(shared));
        let mut batches = Batches::new();
        for datagram in datagrams {
            let meta = DatagramMeta {
                sender: "192.0.2.1".parse().unwrap(),
                sender_port: 4_000,
                local_port: 4_739,
                received_us: 1_700_000_001_000_000,
            };
            decoder.decode(datagram, &meta, &mut batches);
        }
        batches.flows.rows()
    }

    #[test]
    fn after_a_restart_the_first_data_set_decodes() {
        let directory = tempfile::tempdir().unwrap();
        let datagrams = ipfix(20);
        let data = &datagrams[10..];
        let shared = Arc::new(SharedState::new());
        let mut file = StateFile::new(directory.path());
        assert_eq!(file.restore(&shared, &DecodeConfig::default()).unwrap(), 0);
        assert!(!file.save(&shared).unwrap(), "nothing was learned yet");
        assert_eq!(decode(&shared, data), 0, "no template");
        let rows = decode(&shared, &datagrams);
        assert!(rows > 200);
        assert!(file.save(&shared).unwrap());
        assert!(!file.save(&shared).unwrap(), "nothing has changed");

        let shared = Arc::new(SharedState::new());
        let mut file = StateFile::new(directory.path());
        assert!(file.restore(&shared, &DecodeConfig::default()).unwrap() > 0);
        assert!(decode(&shared, data) >= rows / 3);
    }

    #[test]
    fn a_file_that_is_damaged_is_put_aside() {
        let directory = tempfile::tempdir().unwrap();
        let shared = Arc::new(SharedState::new());
        let mut file = StateFile::new(directory.path());
        replace(file.path(), b"{\"version\": 1, \"domains\": [").unwrap();
        assert_eq!(file.restore(&shared, &DecodeConfig::default()).unwrap(), 0);
        assert!(!file.path().exists());
        assert!(directory.path().join("state/templates.json.unreadable").exists());
        decode(&shared, &ipfix(2));
        assert!(file.save(&shared).unwrap());
        assert!(
            StateFile::new(directory.path())
                .restore(&Arc::new(SharedState::new()), &DecodeConfig::default())
                .unwrap()
                > 0
        );
    }
}
