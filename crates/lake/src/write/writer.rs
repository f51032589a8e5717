//! The writer: queues of rows by table partition.

use std::{path::PathBuf, sync::Arc};

use async_trait::async_trait;
use calve_engine::{
    error::{Error, Result},
    seams::{Prepared, Sealed, Split, Splitter, TableWriter},
};
use calve_model::Epoch;

use super::{options::WriteOptions, placement::Placement, split::FanoutSplitter};

/// Writes the data files of one output below a folder of the local file system.
pub struct FanoutWriter {
    placement: Arc<dyn Placement>,
}

impl FanoutWriter {
    /// A writer of files below `root`, encoding on `pool`. `shard` goes into file names.
    ///
    /// # Errors
    /// `Config` when an option does not fit the schema.
    pub fn open(
        root: PathBuf,
        shard: &str,
        placement: Arc<dyn Placement>,
        options: &WriteOptions,
        pool: Arc<rayon::ThreadPool>,
    ) -> Result<Self> {
        let _ = (root, shard, options, pool);
        Ok(Self { placement })
    }
}

#[async_trait]
impl TableWriter for FanoutWriter {
    fn splitter(&self) -> Box<dyn Splitter> {
        Box::new(FanoutSplitter::new(self.placement.clone()))
    }
    async fn append(&mut self, _: Split) -> Result<()> {
        Err(Error::internal("not yet"))
    }
    fn buffered_bytes(&self) -> usize {
        0
    }
    fn written_bytes(&self) -> u64 {
        0
    }
    fn open_files(&self) -> usize {
        0
    }
    fn seal(&mut self, _: Epoch) -> Box<dyn Sealed> {
        struct Nothing;
        #[async_trait]
        impl Sealed for Nothing {
            async fn finish(self: Box<Self>) -> Result<Prepared> {
                Err(Error::internal("not yet"))
            }
        }
        Box::new(Nothing)
    }
}
