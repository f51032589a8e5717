//! The checkpoint store of the simulation.

use std::sync::Arc;

use async_trait::async_trait;

use super::process::Process;
use crate::{checkpoint::RecordStore, durable::Created, error::Result};

pub(super) struct SimStore(pub(super) Arc<Process>);

#[async_trait]
impl RecordStore for SimStore {
    async fn create(&self, name: &str, bytes: Vec<u8>) -> Result<Created> {
        self.0.before("store.create").await?;
        let created = {
            let mut state = self.0.world.state();
            if state.store.contains_key(name) {
                Created::Exists
            } else {
                if name.strip_suffix(".json").is_some() {
                    state.record_created(&bytes);
                }
                state.store.insert(name.to_owned(), bytes);
                Created::Yes
            }
        };
        self.0.after("store.create").await?;
        Ok(created)
    }

    async fn get(&self, name: &str) -> Result<Option<Vec<u8>>> {
        self.0.before("store.get").await?;
        let found = self.0.world.state().store.get(name).cloned();
        self.0.after("store.get").await?;
        Ok(found)
    }

    async fn put(&self, name: &str, bytes: Vec<u8>) -> Result<()> {
        self.0.before("store.put").await?;
        self.0.world.state().store.insert(name.to_owned(), bytes);
        self.0.after("store.put").await
    }

    async fn list(&self, folder: &str) -> Result<Vec<String>> {
        self.0.before("store.list").await?;
        let within = format!("{folder}/");
        let names = self
            .0
            .world
            .state()
            .store
            .keys()
            .cloned()
            .collect::<Vec<_>>();
        self.0.after("store.list").await?;
        Ok(names
            .iter()
            .filter_map(|name| name.strip_prefix(&within).map(str::to_owned))
            .collect())
    }

    async fn folders(&self, _: &str) -> Result<Vec<String>> {
        unreachable!("the shard loop knows its folder")
    }

    async fn delete(&self, name: &str) -> Result<()> {
        self.0.before("store.delete").await?;
        self.0.world.state().store.remove(name);
        self.0.after("store.delete").await
    }

    fn location(&self) -> String {
        "the simulation".into()
    }
}
