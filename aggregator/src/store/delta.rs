//! The Delta Lake log of one table: read, replay, commit.
//!
//! The log is a directory of numbered JSON files, each a list of actions, and now and then a checkpoint that sums them
//! up (<https://github.com/delta-io/delta/blob/master/PROTOCOL.md>). A commit is the creation of the next number, which
//! only one writer can win. We need four things of it, and each exactly: files that appear at once, application
//! transactions that say up to which offset a table goes, a second writer that notices that it is one, and an unknown
//! outcome (a lost answer) that resolves itself. `docs/decisions/delta-log.md` says why this is our own code.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow::datatypes::{DataType, Schema};
use bytes::Bytes;
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions};
use serde::{Deserialize, Serialize};

use super::{StoreError, checkpoint};

/// An action of the log; exactly one of the fields is there. Kinds that we do not know are passed over.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Action {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) commit_info: Option<serde_json::Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) protocol: Option<Protocol>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) meta_data: Option<MetaData>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) txn: Option<Txn>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) remove: Option<Remove>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) add: Option<Add>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Protocol {
    pub(crate) min_reader_version: i32,
    pub(crate) min_writer_version: i32,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct MetaData {
    pub(crate) id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<String>,
    pub(crate) format: Format,
    pub(crate) schema_string: String,
    pub(crate) partition_columns: Vec<String>,
    #[serde(default)]
    pub(crate) configuration: BTreeMap<String, Option<String>>,
    #[serde(default)]
    pub(crate) created_time: Option<i64>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Format {
    pub(crate) provider: String,
    #[serde(default)]
    pub(crate) options: BTreeMap<String, Option<String>>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Txn {
    pub(crate) app_id: String,
    pub(crate) version: i64,
    #[serde(default)]
    pub(crate) last_updated: Option<i64>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Remove {
    pub(crate) path: String,
    #[serde(default)]
    pub(crate) deletion_timestamp: Option<i64>,
    pub(crate) data_change: bool,
    #[serde(default)]
    pub(crate) extended_file_metadata: Option<bool>,
    #[serde(default)]
    pub(crate) partition_values: Option<BTreeMap<String, Option<String>>>,
    #[serde(default)]
    pub(crate) size: Option<i64>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Add {
    pub(crate) path: String,
    #[serde(default)]
    pub(crate) partition_values: BTreeMap<String, Option<String>>,
    pub(crate) size: i64,
    pub(crate) modification_time: i64,
    pub(crate) data_change: bool,
    #[serde(default)]
    pub(crate) stats: Option<String>,
}

/// Statistics of a data file, as Delta writes them.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Stats {
    pub(crate) num_records: i64,
    #[serde(default)]
    pub(crate) min_values: BTreeMap<String, serde_json::Value>,
    #[serde(default)]
    pub(crate) max_values: BTreeMap<String, serde_json::Value>,
}

/// A data file of a table, as queries and maintenance want it.
#[derive(Debug, Clone)]
pub(crate) struct DataFile {
    /// Relative to the table's directory.
    pub(crate) path: String,
    pub(crate) size: u64,
    pub(crate) rows: u64,
    /// The partition: days since 1970.
    pub(crate) day: i32,
    /// Least and greatest value of time columns, µs.
    pub(crate) ranges: Vec<(String, i64, i64)>,
    pub(crate) add: Add,
}

impl DataFile {
    fn new(add: Add) -> DataFile {
        let stats: Stats =
            add.stats.as_deref().and_then(|stats| serde_json::from_str(stats).ok()).unwrap_or_default();
        let time = |value: &serde_json::Value| value.as_str().and_then(parse_time);
        let ranges = stats
            .min_values
            .iter()
            .filter_map(|(name, low)| Some((name.clone(), time(low)?, time(stats.max_values.get(name)?)?)));
        let day = add.partition_values.get("day").and_then(|day| day.as_deref().and_then(parse_day));
        DataFile {
            path: add.path.clone(),
            size: u64::try_from(add.size).unwrap_or(0),
            rows: u64::try_from(stats.num_records).unwrap_or(0),
            day: day.unwrap_or(0),
            ranges: ranges.collect(),
            add,
        }
    }

    /// The range of a time column, where it is known.
    pub(crate) fn range(&self, column: &str) -> Option<(i64, i64)> {
        self.ranges.iter().find(|(name, ..)| name == column).map(|(_, low, high)| (*low, *high))
    }
}

/// `2026-11-23` as days since 1970.
fn parse_day(text: &str) -> Option<i32> {
    let date = chrono::NaiveDate::parse_from_str(text, "%Y-%m-%d").ok()?;
    i32::try_from(date.signed_duration_since(chrono::NaiveDate::default()).num_days()).ok()
}

pub(crate) fn format_day(day: i32) -> String {
    let date = chrono::NaiveDate::default() + chrono::Duration::days(i64::from(day));
    date.format("%Y-%m-%d").to_string()
}

fn parse_time(text: &str) -> Option<i64> {
    chrono::DateTime::parse_from_rfc3339(text).ok().map(|time| time.timestamp_micros())
}

pub(crate) fn format_time(micros: i64) -> Option<String> {
    let time = chrono::DateTime::from_timestamp_micros(micros)?;
    Some(time.to_rfc3339_opts(chrono::SecondsFormat::Micros, true))
}

/// What the log says after all its actions.
#[derive(Debug, Clone, Default)]
pub(crate) struct LogState {
    pub(crate) protocol: Option<Protocol>,
    pub(crate) metadata: Option<MetaData>,
    pub(crate) txns: BTreeMap<String, i64>,
    pub(crate) files: BTreeMap<String, Arc<DataFile>>,
    /// Removed files whose bytes may still be there.
    pub(crate) removed: HashMap<String, Remove>,
}

impl LogState {
    pub(crate) fn apply(&mut self, action: Action) {
        if let Some(protocol) = action.protocol {
            self.protocol = Some(protocol);
        }
        if let Some(metadata) = action.meta_data {
            self.metadata = Some(metadata);
        }
        if let Some(txn) = action.txn {
            self.txns.insert(txn.app_id, txn.version);
        }
        if let Some(remove) = action.remove {
            self.files.remove(&remove.path);
            self.removed.insert(remove.path.clone(), remove);
        }
        if let Some(add) = action.add {
            self.removed.remove(&add.path);
            self.files.insert(add.path.clone(), Arc::new(DataFile::new(add)));
        }
    }
}

/// Why a commit was not made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommitError {
    /// Another writer has moved the table on: drop what depends on the old state and read the store again.
    #[error("another writer has committed to `{table}` (version {version}): this one reads the store again")]
    Fenced { table: String, version: u64 },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The log of one table, as one process sees it.
#[derive(Debug)]
pub(crate) struct DeltaLog {
    objects: Arc<dyn ObjectStore>,
    /// The table's directory below the store's root.
    pub(crate) table: String,
    pub(crate) version: u64,
    pub(crate) state: LogState,
    /// The version of the newest checkpoint.
    pub(crate) checkpoint: Option<u64>,
}

fn log_path(table: &str, name: &str) -> Path {
    Path::from(format!("{table}/_delta_log/{name}"))
}

fn parse_actions(table: &str, version: u64, bytes: &Bytes) -> Result<Vec<Action>, StoreError> {
    let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.iter().all(u8::is_ascii_whitespace));
    let parse = |line: &[u8]| serde_json::from_slice(line);
    lines.map(parse).collect::<Result<_, _>>().map_err(|error| {
        StoreError::Corrupt(format!("`{table}/_delta_log/{version:020}.json` cannot be read: {error}"))
    })
}

impl DeltaLog {
    /// Opens the table, or creates it.
    pub(crate) async fn open(
        objects: &Arc<dyn ObjectStore>,
        table: &str,
        schema: &Schema,
        partitioned: bool,
    ) -> Result<DeltaLog, StoreError> {
        let mut log = DeltaLog {
            objects: Arc::clone(objects),
            table: table.to_owned(),
            version: 0,
            state: LogState::default(),
            checkpoint: None,
        };
        if !log.load().await? {
            log.create(schema, partitioned).await?;
        }
        log.adopt_schema(schema).await?;
        Ok(log)
    }

    /// Reads the log from its newest checkpoint on; false where there is no table yet.
    pub(crate) async fn load(&mut self) -> Result<bool, StoreError> {
        let directory = Path::from(format!("{}/_delta_log", self.table));
        let listed: Vec<_> = self.objects.list(Some(&directory)).try_collect().await?;
        let names = listed.iter().filter_map(|meta| meta.location.filename());
        let (mut commits, mut checkpoints) = (Vec::new(), Vec::new());
        for name in names {
            if let Some(version) = name.strip_suffix(".checkpoint.parquet").and_then(|text| text.parse().ok())
            {
                checkpoints.push(version);
            } else if let Some(version) = name.strip_suffix(".json").and_then(|text| text.parse::<u64>().ok())
            {
                commits.push(version);
            }
        }
        commits.sort_unstable();
        checkpoints.sort_unstable();
        let mut state = LogState::default();
        let mut next = 0;
        self.checkpoint = checkpoints.last().copied();
        if let Some(version) = self.checkpoint {
            let path = log_path(&self.table, &format!("{version:020}.checkpoint.parquet"));
            let bytes = self.objects.get(&path).await?.bytes().await?;
            checkpoint::read(bytes)?.into_iter().for_each(|action| state.apply(action));
            next = version + 1;
        }
        for version in commits {
            if version < next {
                continue;
            }
            if version != next {
                let missing = format!("`{directory}`: version {next} is missing and {version} is there");
                return Err(StoreError::Corrupt(missing));
            }
            for action in self.read(version).await?.unwrap_or_default() {
                state.apply(action);
            }
            next = version + 1;
        }
        if next == 0 {
            return Ok(false);
        }
        self.version = next - 1;
        self.state = state;
        self.check_protocol()?;
        Ok(true)
    }

    fn check_protocol(&self) -> Result<(), StoreError> {
        match &self.state.protocol {
            Some(protocol) if protocol.min_reader_version <= 1 && protocol.min_writer_version <= 2 => Ok(()),
            found => Err(StoreError::Corrupt(format!(
                "`{}` needs the Delta protocol {found:?}, this weir writes reader 1, writer 2: use a newer weir",
                self.table
            ))),
        }
    }

    /// The actions of a version, None where it does not exist.
    async fn read(&self, version: u64) -> Result<Option<Vec<Action>>, StoreError> {
        let path = log_path(&self.table, &format!("{version:020}.json"));
        match self.objects.get(&path).await {
            Ok(found) => parse_actions(&self.table, version, &found.bytes().await?).map(Some),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    async fn create(&mut self, schema: &Schema, partitioned: bool) -> Result<(), StoreError> {
        let metadata = MetaData {
            id: uuid::Uuid::new_v4().to_string(),
            name: Some(self.table.clone()),
            format: Format { provider: "parquet".into(), options: BTreeMap::new() },
            schema_string: schema_string(schema, partitioned),
            partition_columns: if partitioned { vec!["day".into()] } else { Vec::new() },
            configuration: BTreeMap::new(),
            created_time: Some(now_ms()),
        };
        let protocol = Protocol { min_reader_version: 1, min_writer_version: 2 };
        let actions = [
            Action { protocol: Some(protocol), ..Action::default() },
            Action { meta_data: Some(metadata), ..Action::default() },
        ];
        let body = encode(&actions, "CREATE TABLE", &uuid::Uuid::new_v4().to_string())?;
        match self.put(0, body).await {
            Ok(()) | Err(object_store::Error::AlreadyExists { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        if !self.load().await? {
            return Err(StoreError::Corrupt(format!("`{}` vanished while it was created", self.table)));
        }
        Ok(())
    }

    /// Adds the columns that this weir knows and the table has not; other types are refused.
    async fn adopt_schema(&mut self, schema: &Schema) -> Result<(), StoreError> {
        let Some(metadata) = &self.state.metadata else {
            return Err(StoreError::Corrupt(format!("`{}` has no metadata", self.table)));
        };
        let mut stored: serde_json::Value = serde_json::from_str(&metadata.schema_string)
            .map_err(|error| StoreError::Corrupt(format!("schema of `{}`: {error}", self.table)))?;
        let Some(fields) = stored["fields"].as_array_mut() else {
            return Err(StoreError::Corrupt(format!("schema of `{}` has no fields", self.table)));
        };
        let mut added = false;
        for field in schema.fields() {
            let wanted = delta_type(field.data_type());
            match fields.iter().find(|known| known["name"] == field.name().as_str()) {
                Some(known) if known["type"] == wanted => {}
                Some(known) => {
                    return Err(StoreError::Corrupt(format!(
                        "column `{}` of `{}` is stored as {}, this weir writes {wanted}: use the weir that wrote it",
                        field.name(),
                        self.table,
                        known["type"]
                    )));
                }
                None => {
                    fields.push(delta_field(field.name(), wanted));
                    added = true;
                }
            }
        }
        if added {
            let metadata = MetaData { schema_string: stored.to_string(), ..metadata.clone() };
            let action = Action { meta_data: Some(metadata), ..Action::default() };
            match self.commit(vec![action], "ADD COLUMNS", &[], &uuid::Uuid::new_v4().to_string()).await {
                Ok(()) => {}
                Err(CommitError::Store(error)) => return Err(error),
                Err(error) => return Err(StoreError::Corrupt(error.to_string())),
            }
        }
        Ok(())
    }

    async fn put(&self, version: u64, body: Bytes) -> Result<(), object_store::Error> {
        let path = log_path(&self.table, &format!("{version:020}.json"));
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        self.objects.put_opts(&path, body.into(), options).await.map(|_| ())
    }

    /// Commits `actions` if, at that version, each application of `fence` still stands where it says and every file that
    /// the actions remove is still there. `id` names this commit: offering it again after an unknown outcome is safe.
    pub(crate) async fn commit(
        &mut self,
        actions: Vec<Action>,
        operation: &str,
        fence: &[(String, Option<i64>)],
        id: &str,
    ) -> Result<(), CommitError> {
        let body = encode(&actions, operation, id)?;
        loop {
            let holds = fence.iter().all(|(app, at)| self.state.txns.get(app).copied() == *at);
            let removes = actions.iter().filter_map(|action| action.remove.as_ref());
            let present = removes.into_iter().all(|remove| self.state.files.contains_key(&remove.path));
            if !holds || !present {
                return Err(CommitError::Fenced { table: self.table.clone(), version: self.version });
            }
            let version = self.version + 1;
            let failure = match self.put(version, body.clone()).await {
                Ok(()) => {
                    self.advance(version, actions);
                    return Ok(());
                }
                Err(object_store::Error::AlreadyExists { .. }) => None,
                Err(error) => Some(error),
            };
            // Taken, or unknown: what stands there decides.
            match (self.read(version).await?, failure) {
                (Some(found), _) => {
                    let ours = found.iter().any(|action| {
                        action.commit_info.as_ref().is_some_and(|info| info["weirCommit"] == id)
                    });
                    self.advance(version, found);
                    if ours {
                        return Ok(());
                    }
                }
                (None, Some(error)) => return Err(StoreError::from(error).into()),
                (None, None) => {
                    let text = format!("`{}`: version {version} exists and cannot be found", self.table);
                    return Err(StoreError::Corrupt(text).into());
                }
            }
        }
    }

    /// Reads what other writers have committed since; whether there was anything.
    pub(crate) async fn catch_up(&mut self) -> Result<bool, StoreError> {
        let before = self.version;
        while let Some(actions) = self.read(self.version + 1).await? {
            self.advance(self.version + 1, actions);
        }
        Ok(self.version != before)
    }

    fn advance(&mut self, version: u64, actions: Vec<Action>) {
        self.version = version;
        actions.into_iter().for_each(|action| self.state.apply(action));
    }

    /// Sums the log up, and removes log files that are older than the checkpoint and than `keep_ms`.
    pub(crate) async fn checkpoint(&mut self, tombstones_ms: i64, keep_ms: i64) -> Result<(), StoreError> {
        let now = now_ms();
        self.state.removed.retain(|_, remove| remove.deletion_timestamp.unwrap_or(0) > now - tombstones_ms);
        let bytes = checkpoint::write(&self.state)?;
        let path = log_path(&self.table, &format!("{:020}.checkpoint.parquet", self.version));
        self.objects.put(&path, bytes.clone().into()).await?;
        let actions = self.state.files.len() + self.state.removed.len() + self.state.txns.len() + 2;
        let hint = serde_json::json!({"version": self.version, "size": actions, "sizeInBytes": bytes.len()});
        self.objects.put(&log_path(&self.table, "_last_checkpoint"), hint.to_string().into()).await?;
        self.checkpoint = Some(self.version);
        self.clean_log(now - keep_ms).await
    }

    async fn clean_log(&self, before_ms: i64) -> Result<(), StoreError> {
        let Some(checkpoint) = self.checkpoint else { return Ok(()) };
        let directory = Path::from(format!("{}/_delta_log", self.table));
        let listed: Vec<_> = self.objects.list(Some(&directory)).try_collect().await?;
        for meta in listed {
            let version =
                meta.location.filename().and_then(|name| name.split('.').next()?.parse::<u64>().ok());
            if version.is_some_and(|version| version < checkpoint)
                && meta.last_modified.timestamp_millis() < before_ms
            {
                self.objects.delete(&meta.location).await?;
            }
        }
        Ok(())
    }
}

pub(crate) fn now_ms() -> i64 {
    chrono::Utc::now().timestamp_millis()
}

fn encode(actions: &[Action], operation: &str, id: &str) -> Result<Bytes, StoreError> {
    let info = serde_json::json!({
        "timestamp": now_ms(),
        "operation": operation,
        "operationParameters": {},
        "engineInfo": concat!("weir/", env!("CARGO_PKG_VERSION")),
        "weirCommit": id,
    });
    let mut body = serde_json::json!({ "commitInfo": info }).to_string().into_bytes();
    for action in actions {
        body.push(b'\n');
        serde_json::to_writer(&mut body, action)
            .map_err(|error| StoreError::Corrupt(format!("an action cannot be written: {error}")))?;
    }
    body.push(b'\n');
    Ok(body.into())
}

fn delta_field(name: &str, kind: serde_json::Value) -> serde_json::Value {
    serde_json::json!({"name": name, "type": kind, "nullable": true, "metadata": {}})
}

/// The Delta type of an Arrow type of ours.
fn delta_type(kind: &DataType) -> serde_json::Value {
    let name = match kind {
        DataType::Boolean => "boolean",
        DataType::Int16 => "short",
        DataType::Int32 => "integer",
        DataType::Int64 => "long",
        DataType::Float64 => "double",
        DataType::Date32 => "date",
        DataType::Timestamp(..) => "timestamp",
        DataType::FixedSizeBinary(_) | DataType::Binary => "binary",
        DataType::List(item) => {
            return serde_json::json!({
                "type": "array", "elementType": delta_type(item.data_type()), "containsNull": true
            });
        }
        DataType::Map(..) => {
            return serde_json::json!({
                "type": "map", "keyType": "string", "valueType": "string", "valueContainsNull": true
            });
        }
        _ => "string",
    };
    name.into()
}

fn schema_string(schema: &Schema, partitioned: bool) -> String {
    let fields = schema.fields().iter().map(|field| delta_field(field.name(), delta_type(field.data_type())));
    let day = partitioned.then(|| delta_field("day", "date".into()));
    let fields: Vec<_> = fields.chain(day).collect();
    serde_json::json!({"type": "struct", "fields": fields}).to_string()
}
