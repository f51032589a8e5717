//! Stand-in.
use std::{collections::HashMap, io, path::Path};
#[derive(Debug, Default, Clone)]
pub(crate) struct Keys {
    keys: Vec<Vec<u8>>,
}
impl Keys {
    pub(crate) fn with_capacity(keys: usize, _bytes: usize) -> Self {
        Self {
            keys: Vec::with_capacity(keys),
        }
    }
    pub(crate) fn push(&mut self, key: &[u8]) {
        self.keys.push(key.to_vec());
    }
}
#[derive(Debug, Default)]
pub(crate) struct Values {
    values: Vec<Option<Vec<u8>>>,
}
impl Values {
    pub(crate) fn get(&self, n: usize) -> Option<&[u8]> {
        self.values[n].as_deref()
    }
}
#[derive(Debug, Clone, Copy)]
pub(crate) struct Options {
    pub(crate) memory_bytes: usize,
}
#[derive(Debug)]
pub(crate) struct Store {
    map: HashMap<Vec<u8>, Vec<u8>>,
    meta: Option<Vec<u8>>,
}
impl Store {
    pub(crate) fn open(_folder: &Path, _options: Options) -> io::Result<Self> {
        Ok(Self {
            map: HashMap::new(),
            meta: None,
        })
    }
    pub(crate) fn meta(&self) -> Option<&[u8]> {
        self.meta.as_deref()
    }
    pub(crate) fn get(&mut self, keys: &Keys) -> io::Result<Values> {
        Ok(Values {
            values: keys.keys.iter().map(|k| self.map.get(k).cloned()).collect(),
        })
    }
    pub(crate) fn put(&mut self, key: &[u8], value: &[u8]) -> io::Result<()> {
        self.map.insert(key.to_vec(), value.to_vec());
        Ok(())
    }
    pub(crate) fn delete(&mut self, key: &[u8]) -> io::Result<()> {
        self.map.remove(key);
        Ok(())
    }
    pub(crate) fn commit(&mut self, meta: &[u8]) -> io::Result<()> {
        self.meta = Some(meta.to_vec());
        Ok(())
    }
    pub(crate) fn clear(&mut self) -> io::Result<()> {
        self.map.clear();
        Ok(())
    }
    pub(crate) fn scan(&self, mut f: impl FnMut(&[u8], &[u8])) -> io::Result<()> {
        for (k, v) in &self.map {
            f(k, v);
        }
        Ok(())
    }
}
