//! A reader that blocks, worked from async code.

use tokio::task::JoinHandle;

use super::SourceError;

/// Owns a reader and lends it to a blocking thread for one piece of work at a time. A caller that gives up waiting loses
/// nothing: the next call gets the result of the work that was begun.
#[derive(Debug)]
pub(super) struct OnThread<R, T> {
    /// Absent while `working` has it.
    reader: Option<R>,
    working: Option<JoinHandle<(R, T)>>,
}

impl<R: Send + 'static, T: Send + 'static> OnThread<R, T> {
    pub(super) fn new(reader: R) -> OnThread<R, T> {
        OnThread { reader: Some(reader), working: None }
    }

    /// Begins `work`, unless some is going on, and waits for its result.
    pub(super) async fn run(
        &mut self,
        work: impl FnOnce(&mut R) -> T + Send + 'static,
    ) -> Result<(&R, T), SourceError> {
        if let Some(mut reader) = self.reader.take() {
            self.working = Some(tokio::task::spawn_blocking(move || {
                let result = work(&mut reader);
                (reader, result)
            }));
        }
        let Some(working) = &mut self.working else {
            return Err(SourceError::Fatal("its reader has panicked".to_owned()));
        };
        let finished = working.await;
        self.working = None;
        let (reader, result) =
            finished.map_err(|error| SourceError::Fatal(format!("its reader has ended: {error}")))?;
        Ok((self.reader.insert(reader), result))
    }

    /// The reader, while no work is going on.
    #[cfg(test)]
    pub(super) fn reader(&mut self) -> Option<&mut R> {
        self.reader.as_mut()
    }
}
