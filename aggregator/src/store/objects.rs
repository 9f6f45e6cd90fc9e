//! Where the files lie: an object store made from the configured URL, and the local one made durable.
//!
//! object_store 0.13's `LocalFileSystem` never calls fsync: a file that it has "put" can be gone, or empty, after a
//! power cut. [`Durable`] writes the file itself: staged, synced, published under its name in one step, and the
//! directories that name it synced too, before `put` returns.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path as FsPath, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result, parse_url_opts,
};
use url::Url;

use super::StoreError;

/// The store's root as an [`ObjectStore`], and its directory where it is a local one.
pub(crate) struct Root {
    pub(crate) objects: Arc<dyn ObjectStore>,
    pub(crate) directory: Option<PathBuf>,
}

/// Opens `url` (`file:///…`, `s3://bucket/prefix`, …; a text without `://` is a local directory) with `options` (such as
/// `aws_region`; what is absent comes from the environment as object_store reads it).
pub(crate) fn open(url: &str, options: &[(String, String)]) -> Result<Root, StoreError> {
    let local = match Url::parse(url) {
        Ok(parsed) if url.contains("://") => {
            if parsed.scheme() == "file" {
                Some(parsed.to_file_path().map_err(|()| StoreError::Config(format!("`{url}` is no path")))?)
            } else {
                let config = |error| StoreError::Config(format!("store url `{url}`: {error}"));
                let lower = options.iter().map(|(key, value)| (key.to_lowercase(), value.clone()));
                let environment = std::env::vars()
                    .filter(|(key, _)| ["AWS_", "GOOGLE_", "AZURE_"].iter().any(|name| key.starts_with(name)))
                    .map(|(key, value)| (key.to_lowercase(), value));
                // the configured options come last: they win
                let all: Vec<(String, String)> = environment.chain(lower).collect();
                let (objects, prefix) = parse_url_opts(&parsed, all).map_err(config)?;
                let objects: Arc<dyn ObjectStore> = Arc::new(PrefixStore::new(objects, prefix));
                return Ok(Root { objects, directory: None });
            }
        }
        _ => Some(PathBuf::from(url)),
    };
    let directory = local.unwrap_or_default();
    let failed =
        |error: io::Error| StoreError::Config(format!("store directory `{}`: {error}", directory.display()));
    fs::create_dir_all(&directory).map_err(failed)?;
    let directory = directory.canonicalize().map_err(failed)?;
    let inner = LocalFileSystem::new_with_prefix(&directory)?;
    Ok(Root { objects: Arc::new(Durable { inner, root: directory.clone() }), directory: Some(directory) })
}

/// A local file system whose `put` is durable when it returns.
#[derive(Debug)]
pub(crate) struct Durable {
    inner: LocalFileSystem,
    root: PathBuf,
}

impl std::fmt::Display for Durable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Durable({})", self.root.display())
    }
}

/// Staged files end in `#` and digits: `LocalFileSystem` does not list such names.
const STAGED: char = '#';

fn failed(path: &FsPath, error: io::Error) -> object_store::Error {
    let path_text = path.display().to_string();
    match error.kind() {
        ErrorKind::AlreadyExists => {
            object_store::Error::AlreadyExists { path: path_text, source: Box::new(error) }
        }
        ErrorKind::NotFound => object_store::Error::NotFound { path: path_text, source: Box::new(error) },
        _ => object_store::Error::Generic {
            store: "local",
            source: Box::new(io::Error::new(error.kind(), format!("{path_text}: {error}"))),
        },
    }
}

/// Creates the missing directories above `path`, each made durable in its parent.
fn create_parents(root: &FsPath, path: &FsPath) -> io::Result<()> {
    let Some(parent) = path.parent() else { return Ok(()) };
    if parent == root || parent.exists() {
        return Ok(());
    }
    create_parents(root, parent)?;
    match fs::create_dir(parent) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    parent.parent().map_or(Ok(()), sync_directory)
}

fn sync_directory(path: &FsPath) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn put_durably(root: &FsPath, path: &FsPath, payload: &PutPayload, create: bool) -> io::Result<()> {
    create_parents(root, path)?;
    let number = uuid::Uuid::new_v4().as_u64_pair().0;
    let mut staged = path.as_os_str().to_owned();
    staged.push(format!("{STAGED}{number}"));
    let staged = PathBuf::from(staged);
    let write = || -> io::Result<()> {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).open(&staged)?;
        payload.iter().try_for_each(|part| file.write_all(part))?;
        file.sync_all()?;
        if create { fs::hard_link(&staged, path) } else { fs::rename(&staged, path) }
    };
    let written = write();
    if create || written.is_err() {
        // the name that counts is the other one; what stays behind is swept by maintenance
        let _ = fs::remove_file(&staged);
    }
    written?;
    path.parent().map_or(Ok(()), sync_directory)
}

/// Removes staged files that a crash left behind, older than `grace`.
pub(crate) fn sweep_staged(directory: &FsPath, grace: std::time::Duration) -> io::Result<u64> {
    let mut removed = 0;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            removed += sweep_staged(&entry.path(), grace)?;
            continue;
        }
        let name = entry.file_name();
        let staged = name.to_string_lossy().rsplit_once(STAGED).is_some_and(|(_, number)| {
            !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
        });
        let old = entry.metadata()?.modified()?.elapsed().is_ok_and(|age| age > grace);
        if staged && old {
            fs::remove_file(entry.path())?;
            removed += 1;
        }
    }
    Ok(removed)
}

#[async_trait]
impl ObjectStore for Durable {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let create = match options.mode {
            object_store::PutMode::Overwrite => false,
            object_store::PutMode::Create => true,
            object_store::PutMode::Update(_) => {
                return Err(object_store::Error::NotImplemented {
                    operation: "conditional update".into(),
                    implementer: self.to_string(),
                });
            }
        };
        let path = self.inner.path_to_filesystem(location)?;
        let root = self.root.clone();
        let task = tokio::task::spawn_blocking(move || {
            put_durably(&root, &path, &payload, create).map_err(|error| failed(&path, error))
        });
        task.await.map_err(|source| object_store::Error::JoinError { source })??;
        Ok(PutResult { e_tag: None, version: None })
    }

    async fn put_multipart_opts(&self, _: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        // nothing in weir needs it, and LocalFileSystem's would not be durable
        Err(object_store::Error::NotImplemented {
            operation: "multipart upload".into(),
            implementer: self.to_string(),
        })
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    async fn get_ranges(
        &self,
        location: &Path,
        ranges: &[std::ops::Range<u64>],
    ) -> Result<Vec<bytes::Bytes>> {
        self.inner.get_ranges(location, ranges).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.inner.rename_opts(from, to, options).await
    }
}

#[cfg(test)]
mod tests {
    use object_store::{ObjectStoreExt, PutMode};

    use super::*;

    #[tokio::test]
    async fn a_put_is_whole_or_absent_and_a_second_create_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let root = open(directory.path().to_str().unwrap(), &[]).unwrap();
        let path = Path::from("table/_delta_log/00000000000000000000.json");
        let create = || PutOptions { mode: PutMode::Create, ..Default::default() };
        root.objects.put_opts(&path, "first".into(), create()).await.unwrap();
        let error = root.objects.put_opts(&path, "second".into(), create()).await.unwrap_err();
        assert!(matches!(error, object_store::Error::AlreadyExists { .. }), "{error}");
        assert_eq!(root.objects.get(&path).await.unwrap().bytes().await.unwrap(), "first");
        root.objects.put(&path, "third".into()).await.unwrap();
        assert_eq!(root.objects.get(&path).await.unwrap().bytes().await.unwrap(), "third");
        let names: Vec<_> = fs::read_dir(directory.path().join("table/_delta_log")).unwrap().collect();
        assert_eq!(names.len(), 1, "no staged file stays behind: {names:?}");
    }

    #[test]
    fn staged_files_are_swept_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("a")).unwrap();
        for name in ["a/x.parquet#17", "a/x.parquet", "b#", "c#1x", "d#9"] {
            fs::write(directory.path().join(name), "x").unwrap();
        }
        assert_eq!(sweep_staged(directory.path(), std::time::Duration::from_secs(60)).unwrap(), 0);
        assert_eq!(sweep_staged(directory.path(), std::time::Duration::ZERO).unwrap(), 2);
        assert!(directory.path().join("a/x.parquet").exists() && directory.path().join("b#").exists());
    }
}
