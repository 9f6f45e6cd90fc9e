//! Of which country an address is, as a database in MaxMind's format (MMDB) says: GeoLite2-Country, DB-IP, IPinfo.
//!
//! The database is read whole, and only ranges of addresses are kept of it: a look-up is a binary search, and nothing
//! that is done to the file afterwards can hurt. It is looked at every minute; a new one takes the place of the old, one
//! that cannot be read does not.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use maxminddb::{MaxMindDbError, Reader, WithinOptions, path};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tokio_util::sync::CancellationToken;
use weir_schemas::Address;

/// How often the file is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(if cfg!(test) { 20 } else { 60_000 });
/// A file larger than this is none of countries.
const MAX_BYTES: u64 = 1 << 30;

/// Why a database is of no use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CountriesError {
    #[error("cannot read {path}: {error}")]
    File { path: String, error: std::io::Error },
    #[error("{path} is no database in MaxMind's format (.mmdb): {error}")]
    Format { path: String, error: MaxMindDbError },
    #[error("{0} has {1} bytes: more than any database of countries")]
    Large(String, u64),
    #[error("{0} says of no network which country it is in: it needs `country.iso_code` or `country_code`")]
    Empty(String),
}

/// The country of every address. Whoever has a clone sees the newest database.
#[derive(Clone, Default)]
pub struct Countries {
    path: String,
    read: Arc<RwLock<Option<Arc<Ranges>>>>,
}

impl std::fmt::Debug for Countries {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Countries").field(&self.path).finish()
    }
}

/// Two are the same where they are of the same file.
impl PartialEq for Countries {
    fn eq(&self, other: &Countries) -> bool {
        self.path == other.path
    }
}

impl Eq for Countries {}

impl Serialize for Countries {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.path.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Countries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Countries, D::Error> {
        String::deserialize(deserializer).map(Countries::at)
    }
}

impl Countries {
    /// Those of a file, which is not read yet.
    pub fn at(path: impl Into<String>) -> Countries {
        Countries { path: path.into(), read: Arc::default() }
    }

    pub(crate) fn is_configured(&self) -> bool {
        !self.path.is_empty()
    }

    /// What was read last; None before.
    pub(crate) fn current(&self) -> Option<Arc<Ranges>> {
        self.read.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Why the file cannot be used, as far as its end tells.
    pub(crate) fn problem(&self) -> Option<CountriesError> {
        if self.is_configured() { self.open().err() } else { None }
    }

    /// Reads the file, where one is configured. On an error what was read before stays.
    pub(crate) fn load(&self) -> Result<(), CountriesError> {
        if !self.is_configured() {
            return Ok(());
        }
        let database = self.open()?;
        let format = |error| CountriesError::Format { path: self.path.clone(), error };
        let ranges = Ranges::of(&database).map_err(format)?;
        if ranges.codes.is_empty() {
            return Err(CountriesError::Empty(self.path.clone()));
        }
        tracing::info!(
            path = self.path,
            of = database.metadata().database_type,
            built = database.metadata().build_epoch,
            ranges = ranges.starts.len(),
            countries = ranges.codes.len(),
            "countries read"
        );
        *self.read.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(ranges));
        Ok(())
    }

    fn open(&self) -> Result<Reader<Vec<u8>>, CountriesError> {
        let failed = |error| CountriesError::File { path: self.path.clone(), error };
        let size = std::fs::metadata(&self.path).map_err(failed)?.len();
        if size > MAX_BYTES {
            return Err(CountriesError::Large(self.path.clone(), size));
        }
        // into memory: what is mapped can be cut off under our feet
        let bytes = std::fs::read(&self.path).map_err(failed)?;
        Reader::from_source(bytes).map_err(|error| CountriesError::Format { path: self.path.clone(), error })
    }

    /// Reads the file again whenever it is another one, until `stop`. It has been read before.
    pub(crate) async fn follow(self, stop: CancellationToken) {
        let stamp = |path: &str| -> Option<(SystemTime, u64)> {
            let file = std::fs::metadata(Path::new(path)).ok()?;
            Some((file.modified().ok()?, file.len()))
        };
        let mut seen = stamp(&self.path);
        while self.is_configured() {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            let now = stamp(&self.path);
            if now == seen {
                continue;
            }
            seen = now;
            let countries = self.clone();
            match tokio::task::spawn_blocking(move || countries.load()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(%error, "the countries stay as they were"),
                Err(error) => tracing::warn!(%error, "reading the countries died; they stay as they were"),
            }
        }
    }
}

/// Ranges of addresses, in order, each up to the next one.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Ranges {
    starts: Vec<u128>,
    /// Of each range: 1 more than the place in `codes`; 0: nobody knows.
    numbers: Vec<u16>,
    codes: Vec<String>,
}

impl Ranges {
    fn of(database: &Reader<Vec<u8>>) -> Result<Ranges, MaxMindDbError> {
        // networks share their data: each is looked into once
        let mut known: HashMap<usize, u16> = HashMap::new();
        let mut codes: Vec<String> = Vec::new();
        let mut networks: Vec<(u128, u128, u16)> = Vec::new();
        for found in database.networks(WithinOptions::default())? {
            let found = found?;
            let Some(place) = found.offset() else { continue };
            let number = match known.get(&place) {
                Some(number) => *number,
                None => {
                    let code = [&path!["country", "iso_code"][..], &path!["country_code"], &path!["country"]]
                        .into_iter()
                        // a path through what is no map is an error: then it is not there either
                        .find_map(|path| found.decode_path::<String>(path).ok().flatten());
                    let number =
                        code.filter(|code| !code.is_empty()).map_or(0, |code| number(&mut codes, code));
                    known.insert(place, number);
                    number
                }
            };
            let network = found.network()?;
            let bound = |address: IpAddr| u128::from_be_bytes(Address::from(address).0);
            networks.push((bound(network.network()), bound(network.broadcast()), number));
        }
        networks.sort_unstable();
        let mut ranges = Ranges { codes, ..Ranges::default() };
        let mut next = Some(0);
        for (first, last, number) in networks {
            if let Some(gap) = next.filter(|next| *next < first) {
                ranges.push(gap, 0);
            }
            ranges.push(first, number);
            next = last.checked_add(1);
        }
        if let Some(gap) = next {
            ranges.push(gap, 0);
        }
        Ok(ranges)
    }

    fn push(&mut self, start: u128, number: u16) {
        if self.numbers.last() != Some(&number) {
            self.starts.push(start);
            self.numbers.push(number);
        }
    }

    /// The number of the country of an address, IPv4 as `::ffff:a.b.c.d`; 0 where nobody knows.
    pub(crate) fn number(&self, address: u128) -> u16 {
        let place = self.starts.partition_point(|start| *start <= address);
        place.checked_sub(1).map_or(0, |place| self.numbers[place])
    }

    /// What a number stands for.
    pub(crate) fn code(&self, number: u16) -> Option<&str> {
        usize::from(number).checked_sub(1).and_then(|place| self.codes.get(place)).map(String::as_str)
    }

    /// How many numbers there are.
    pub(crate) fn numbers(&self) -> u16 {
        u16::try_from(self.codes.len()).map_or(u16::MAX, |countries| countries.saturating_add(1))
    }

    /// Of no address anybody knows anything.
    pub(crate) fn none() -> Arc<Ranges> {
        static NONE: OnceLock<Arc<Ranges>> = OnceLock::new();
        Arc::clone(NONE.get_or_init(Arc::default))
    }
}

/// The number of a country, which gets the next one where it is new. There are fewer than 300; a database of anything else
/// fills up at 65,534.
fn number(codes: &mut Vec<String>, code: String) -> u16 {
    let place = codes.iter().position(|known| *known == code).unwrap_or_else(|| {
        if codes.len() < usize::from(u16::MAX) - 1 {
            codes.push(code);
            codes.len() - 1
        } else {
            usize::MAX
        }
    });
    place.checked_add(1).and_then(|number| u16::try_from(number).ok()).unwrap_or(0)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/testdata/countries.mmdb");

    fn of(ranges: &Ranges, address: &str) -> Option<String> {
        let address: Address = address.parse().unwrap();
        ranges.code(ranges.number(u128::from_be_bytes(address.0))).map(str::to_owned)
    }

    #[test]
    fn addresses_are_of_the_country_that_the_most_specific_network_says() {
        let countries = Countries::at(FILE);
        assert!(countries.problem().is_none() && countries.current().is_none());
        countries.load().unwrap();
        let ranges = countries.clone().current().unwrap();
        for (address, want) in [
            ("0.0.0.0", None),
            ("10.0.0.0", Some("DE")),
            ("10.0.0.255", Some("AT")),
            ("10.5.255.255", Some("DE")),
            // a part of it is elsewhere, and a part of that is of no country
            ("10.6.0.0", Some("FR")),
            ("10.6.188.83", Some("FR")),
            ("10.6.200.7", None),
            ("10.7.0.0", Some("DE")),
            ("10.255.255.255", Some("DE")),
            ("11.0.0.0", None),
            ("198.51.100.1", Some("US")),
            ("255.255.255.255", None),
            ("2001:db8::1", Some("JP")),
            ("2001:db9::", None),
            ("ffff::", None),
        ] {
            assert_eq!(of(&ranges, address).as_deref(), want, "{address}");
        }
        assert_eq!(usize::from(ranges.numbers()), ranges.codes.len() + 1);
        assert_eq!(Ranges::none().number(7), 0);
    }

    #[tokio::test]
    async fn another_file_is_read_and_a_broken_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("countries.mmdb");
        let new = directory.path().join("new");
        let countries = Countries::at(path.to_str().unwrap());
        let replace = |bytes: &[u8]| {
            std::fs::write(&new, bytes).unwrap();
            std::fs::rename(&new, &path).unwrap();
        };
        let whole = std::fs::read(FILE).unwrap();
        replace(&whole);
        countries.load().unwrap();
        let stop = CancellationToken::new();
        let following = tokio::spawn(countries.clone().follow(stop.clone()));
        // one country has another name: as long, and an equal place in the file
        let at = whole.windows(2).rposition(|two| two == b"FR").unwrap();
        let renamed = [&whole[..at], b"CH", &whole[at + 2..]].concat();
        for (bytes, want) in [(&whole[..40], "FR"), (&renamed, "CH"), (&whole[..50], "CH"), (&whole, "FR")] {
            replace(bytes);
            let deadline = std::time::Instant::now() + Duration::from_secs(20);
            tokio::time::sleep(LOOK_EVERY * 5).await;
            while of(&countries.current().unwrap(), "10.6.0.0").as_deref() != Some(want) {
                assert!(std::time::Instant::now() < deadline, "not {want}");
                tokio::time::sleep(LOOK_EVERY).await;
            }
        }
        stop.cancel();
        following.await.unwrap();
    }

    #[test]
    fn what_is_no_database_says_so_and_what_was_read_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("countries.mmdb");
        let countries = Countries::at(path.to_str().unwrap());
        assert!(countries.problem().unwrap().to_string().starts_with("cannot read"));
        let whole = std::fs::read(FILE).unwrap();
        std::fs::write(&path, &whole).unwrap();
        countries.load().unwrap();
        let before = countries.current().unwrap();
        for at in 0..whole.len() {
            std::fs::write(&path, &whole[..at]).unwrap();
            assert!(countries.load().is_err(), "{at} of {} bytes", whole.len());
            let mut damaged = whole.clone();
            damaged[at] ^= 0xff;
            std::fs::write(&path, damaged).unwrap();
            // whatever it says: no panic
            let _ = Countries::at(path.to_str().unwrap()).load();
        }
        assert!(Arc::ptr_eq(&before, &countries.current().unwrap()));
        assert!(Countries::default().load().is_ok());
    }
}
