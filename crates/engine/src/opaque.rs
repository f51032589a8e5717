//! JSON that is handed on without being looked into.

use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::DeserializeOwned};
use serde_json::value::RawValue;

use crate::error::{Error, Result};

/// A JSON value as text. An epoch may name tens of thousands of files, in several places at once: as
/// text they take a fifth of what a tree of values takes, and a copy shares it.
#[derive(Clone, Debug)]
pub struct Opaque(Arc<RawValue>);

impl Opaque {
    /// The value as text.
    ///
    /// # Errors
    /// `Internal` when JSON cannot express it.
    pub fn of(value: &impl Serialize) -> Result<Self> {
        let text = serde_json::value::to_raw_value(value)
            .map_err(|e| Error::internal("a value cannot be written as JSON").because(e))?;
        Ok(Self(text.into()))
    }

    /// What it says.
    ///
    /// # Errors
    /// When it is something else than a `T`.
    pub fn parse<T: DeserializeOwned>(&self) -> serde_json::Result<T> {
        serde_json::from_str(self.0.get())
    }

    /// Whether it is null: there is nothing.
    pub fn is_null(&self) -> bool {
        self.0.get() == "null"
    }

    /// Whether it is an array.
    pub fn is_array(&self) -> bool {
        self.0.get().starts_with('[')
    }
}

impl Default for Opaque {
    fn default() -> Self {
        Self(RawValue::NULL.to_owned().into())
    }
}

impl PartialEq for Opaque {
    fn eq(&self, other: &Self) -> bool {
        self.0.get() == other.0.get()
    }
}

impl Eq for Opaque {}

impl Serialize for Opaque {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Opaque {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        Box::<RawValue>::deserialize(deserializer).map(|text| Self(text.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_handed_on_comes_out_as_it_went_in() {
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        struct Files {
            of: String,
            content: Opaque,
        }
        let content = Opaque::of(&vec![("a/b.parquet", 1_u64)]).expect("plain data");
        assert!(content.is_array() && !content.is_null() && Opaque::default().is_null());
        let files = Files {
            of: "x".to_owned(),
            content: content.clone(),
        };
        let text = serde_json::to_string_pretty(&files).expect("plain data");
        let read: Files = serde_json::from_str(&text).expect("as it was written");
        assert_eq!(read, files);
        assert_eq!(
            read.content.parse::<Vec<(String, u64)>>().expect("a list"),
            [("a/b.parquet".to_owned(), 1)]
        );
        // A record is compared with others as a tree, too.
        let tree = serde_json::to_value(&files).expect("plain data");
        assert_eq!(tree["content"][0][1], 1);
        assert_eq!(
            serde_json::from_value::<Files>(tree).expect("a tree"),
            files
        );
    }
}
