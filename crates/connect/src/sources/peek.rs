//! Looks at the first events of a source without losing them, to infer their schema.

use std::{collections::VecDeque, time::Duration};

use async_trait::async_trait;
use calve_engine::{Error, RawBatch, Result, Source, SourceEvent};
use calve_model::Offsets;
use tokio::time::Instant;

/// Bytes after which nobody looks further.
const ENOUGH_BYTES: usize = 4 << 20;
/// Processing time to wait for more, once there is something.
const PATIENCE: Duration = Duration::from_secs(1);

/// A source that was opened and looked at; it gives again what was seen.
pub struct Peeked {
    seen: VecDeque<SourceEvent>,
    /// None: it could not be made anew.
    inner: Option<Box<dyn Source>>,
    /// Where it was opened.
    from: Offsets,
    again: Option<Again>,
}

/// Makes the source anew.
type Again = Box<dyn FnOnce() -> Result<Box<dyn Source>> + Send>;

impl Peeked {
    fn inner(&mut self) -> Result<&mut Box<dyn Source>> {
        let gone = || Error::internal("a source is read that could not be opened");
        self.inner.as_mut().ok_or_else(gone)
    }

    /// How to make the source anew, should it have to begin elsewhere than where it was looked at:
    /// another process may have read on meanwhile, and this one taken it over.
    #[must_use]
    pub fn or_anew(
        mut self,
        again: impl FnOnce() -> Result<Box<dyn Source>> + Send + 'static,
    ) -> Self {
        self.again = Some(Box::new(again));
        self
    }
}

/// Opens a source at `from` and reads its first events: up to 4 MiB, or what comes within a second
/// of the first. The source that is returned begins with them; its `open` does nothing when given the
/// same `from`, else it needs [`Peeked::or_anew`].
///
/// # Errors
/// Those of the source.
pub async fn peek(source: Box<dyn Source>, from: &Offsets) -> Result<(Vec<RawBatch>, Peeked)> {
    peek_for(source, from, PATIENCE).await
}

async fn peek_for(
    mut source: Box<dyn Source>,
    from: &Offsets,
    patience: Duration,
) -> Result<(Vec<RawBatch>, Peeked)> {
    source.open(from).await?;
    let mut deadline = None;
    let mut seen = VecDeque::new();
    let mut first: Vec<RawBatch> = Vec::new();
    let mut bytes = 0;
    loop {
        let event = match deadline {
            None => source.next().await?,
            Some(deadline) => match tokio::time::timeout_at(deadline, source.next()).await {
                Ok(event) => event?,
                Err(_) => break,
            },
        };
        let (mut end, mut idle) = (false, false);
        match &event {
            SourceEvent::Batch(raw) => {
                bytes += raw.bytes();
                first.push(raw.clone());
                if bytes > 0 {
                    deadline.get_or_insert_with(|| Instant::now() + patience);
                }
            }
            SourceEvent::End => end = true,
            SourceEvent::Idle => idle = true,
            SourceEvent::Discovered(_) | SourceEvent::Progress(_) => {}
        }
        if !idle {
            seen.push_back(event);
        }
        let late = deadline.is_some_and(|deadline| Instant::now() >= deadline);
        if end || late || bytes >= ENOUGH_BYTES || (idle && bytes > 0) {
            break;
        }
    }
    Ok((
        first,
        Peeked {
            seen,
            inner: Some(source),
            from: from.clone(),
            again: None,
        },
    ))
}

#[async_trait]
impl Source for Peeked {
    fn ask(&mut self, bytes: usize) {
        if let Some(inner) = &mut self.inner {
            inner.ask(bytes);
        }
    }

    async fn open(&mut self, from: &Offsets) -> Result<()> {
        if *from == self.from {
            return Ok(());
        }
        let again = self.again.take().ok_or_else(|| {
            Error::fenced("another process read on while this one looked at the first events")
                .hint("start it again")
        })?;
        self.seen.clear();
        // It may hold what can be held once: a port, the lock of a log.
        drop(self.inner.take());
        let mut source = again()?;
        source.open(from).await?;
        self.inner = Some(source);
        Ok(())
    }

    async fn next(&mut self) -> Result<SourceEvent> {
        match self.seen.pop_front() {
            Some(event) => Ok(event),
            None => self.inner()?.next().await,
        }
    }

    async fn committed(&mut self, upto: &Offsets) -> Result<()> {
        self.inner()?.committed(upto).await
    }

    fn lag(&self) -> Option<u64> {
        self.inner.as_ref()?.lag()
    }

    fn link(&self) -> Option<std::sync::Arc<calve_engine::seams::Link>> {
        self.inner.as_ref()?.link()
    }

    fn stop(&mut self) -> bool {
        self.inner.as_mut().is_some_and(|inner| inner.stop())
    }
}

#[cfg(test)]
#[path = "peek_tests.rs"]
mod tests;
