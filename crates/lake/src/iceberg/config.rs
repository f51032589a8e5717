//! What the user says about an Iceberg table, and the small language of partition and sort terms.

use std::{collections::BTreeMap, fmt, path::PathBuf};

use calve_engine::{
    Secret,
    error::{Error, Result},
    stores::Stores,
};
use iceberg::spec::{NullOrder, SortDirection, Transform};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::evolve::Evolution;
use crate::changes::ChangesConfig;

/// An Iceberg table. It is created when missing, or checked against the pipeline when present.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct IcebergConfig {
    /// Where the table is registered.
    pub catalog: CatalogConfig,
    /// The table: `namespace.name`. The namespace is created when missing.
    pub table: String,
    /// Partition spec: a column (identity), or `year(c)`, `month(c)`, `day(c)`, `hour(c)`,
    /// `bucket(n, c)`, `truncate(width, c)`.
    #[serde(default)]
    pub partition_by: Vec<String>,
    /// Sort order that the table declares: a term as in `partition_by`, then `asc` or `desc`, then
    /// `nulls first` or `nulls last`. Files are written in the order of the events; the order is
    /// for engines that compact the table.
    #[serde(default)]
    pub sort_by: Vec<String>,
    /// Table properties, set when the table is created.
    #[serde(default)]
    pub properties: BTreeMap<String, String>,
    /// Version of the table format, 2 or 3, when the table is created.
    #[serde(default = "two")]
    pub format_version: u8,
    /// The rows are changes: inserts, updates and deletes by key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changes: Option<Box<ChangesConfig>>,
    /// In which ways the table may follow the rows; of the section `schema`.
    #[serde(skip)]
    pub evolution: Evolution,
}

fn two() -> u8 {
    2
}

/// Where tables are registered: one of `sqlite`, `sql` and `rest`. PyIceberg's `SqlCatalog` opens the
/// same databases.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CatalogConfig {
    /// File of a SQLite catalog; created when missing.
    #[serde(default)]
    pub sqlite: Option<PathBuf>,
    /// URL of a catalog in PostgreSQL: `postgres://USER:PASSWORD@HOST/DATABASE`. Its tables are laid
    /// out when they are missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sql: Option<Secret>,
    /// A REST catalog.
    #[serde(default)]
    pub rest: Option<Box<RestConfig>>,
    /// Folder or URL below which tables are created; a REST catalog knows places by itself.
    #[serde(default)]
    pub warehouse: Option<String>,
    /// Name of the catalog within the database.
    #[serde(default = "default_name")]
    pub name: String,
    /// What opens the object stores that tables are in. Not of the file.
    #[serde(skip)]
    pub stores: Stores,
}

/// A REST catalog, and who we are to it: `token`, `credential` or `sigv4`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RestConfig {
    /// URL of the server, without `/v1`.
    pub uri: String,
    /// The warehouse, as the server knows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warehouse: Option<String>,
    /// What stands behind `/v1/` in its paths. Default: what the server says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// A bearer token. With `credential`, the first one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<Secret>,
    /// OAuth2 client credentials, `ID:SECRET`: tokens are got with them, and renewed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential: Option<Secret>,
    /// Where tokens are got. Default: `v1/oauth/tokens` of the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oauth2_server_uri: Option<String>,
    /// Scope of the tokens. Default: `catalog`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
    /// Requests are signed as AWS asks for (Glue, S3 Tables).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sigv4: Option<SigV4Config>,
    /// Headers to send with each request.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, Secret>,
    /// Take what the server lends for the stores of its tables: credentials, endpoint, region. What
    /// `stores` says of the same place counts before it.
    #[serde(default = "yes")]
    pub vended_credentials: bool,
}

/// Signed requests. Without keys of its own those of the environment or of a profile are used.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SigV4Config {
    /// Region to sign for. Default: `AWS_REGION`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Service to sign for: `glue`, `s3tables`, `execute-api`.
    #[serde(default = "glue")]
    pub service: String,
    /// Access key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_key_id: Option<Secret>,
    /// Its secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_access_key: Option<Secret>,
    /// The token of keys that end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_token: Option<Secret>,
}

fn default_name() -> String {
    "default".to_owned()
}

fn yes() -> bool {
    true
}

impl Default for RestConfig {
    fn default() -> Self {
        Self {
            uri: String::new(),
            warehouse: None,
            prefix: None,
            token: None,
            credential: None,
            oauth2_server_uri: None,
            scope: None,
            sigv4: None,
            headers: BTreeMap::new(),
            vended_credentials: true,
        }
    }
}

impl Default for SigV4Config {
    fn default() -> Self {
        Self {
            region: None,
            service: glue(),
            access_key_id: None,
            secret_access_key: None,
            session_token: None,
        }
    }
}

fn glue() -> String {
    "glue".to_owned()
}

impl CatalogConfig {
    /// A SQLite catalog with a warehouse in a local folder.
    pub fn local(sqlite: impl Into<PathBuf>, warehouse: impl Into<String>) -> Self {
        Self {
            sqlite: Some(sqlite.into()),
            warehouse: Some(warehouse.into()),
            name: default_name(),
            ..Self::default()
        }
    }

    /// Where it is, for messages: without secrets.
    pub fn shown(&self) -> String {
        match (&self.sqlite, &self.sql, &self.rest) {
            (Some(path), ..) => {
                let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
                format!("file={}", path.display())
            }
            (None, Some(url), _) => format!("sql={}", crate::checkpoints::shown(url.expose())),
            (None, None, Some(rest)) => format!("uri={}", calve_engine::stores::shown(&rest.uri)),
            (None, None, None) => "no place".to_owned(),
        }
    }

    /// Checks what can be without asking anybody.
    ///
    /// # Errors
    /// `Config` when not exactly one place is named, or its settings contradict each other.
    pub fn validate(&self) -> Result<()> {
        let places = [
            self.sqlite.is_some(),
            self.sql.is_some(),
            self.rest.is_some(),
        ];
        if places.iter().filter(|named| **named).count() != 1 {
            return Err(Error::config(
                "the catalog is in exactly one of `sqlite`, `sql` and `rest`: path=sink.iceberg.catalog",
            )
            .hint("write for example { sqlite: lake/catalog.db, warehouse: lake }"));
        }
        let Some(rest) = &self.rest else {
            return match &self.warehouse {
                Some(_) => Ok(()),
                None => Err(
                    Error::config("a key is missing: path=sink.iceberg.catalog.warehouse")
                        .hint("write for example { sqlite: lake/catalog.db, warehouse: lake }"),
                ),
            };
        };
        let signed = rest.sigv4.is_some();
        if signed && (rest.token.is_some() || rest.credential.is_some()) {
            return Err(Error::config(
                "`sigv4` and a token exclude each other: path=sink.iceberg.catalog.rest",
            ));
        }
        let keys = rest.sigv4.as_ref().map(|sigv4| {
            let secret = sigv4.secret_access_key.is_some();
            sigv4.access_key_id.is_some() == secret && (secret || sigv4.session_token.is_none())
        });
        if keys == Some(false) {
            return Err(Error::config(
                "`access_key_id` and `secret_access_key` go together: \
                 path=sink.iceberg.catalog.rest.sigv4",
            ));
        }
        if self.warehouse.is_some() && rest.warehouse.is_some() {
            return Err(Error::config(
                "the warehouse is named twice: path=sink.iceberg.catalog.rest.warehouse",
            )
            .hint("leave `catalog.warehouse` out"));
        }
        Ok(())
    }
}

/// Namespace and name of a table in a catalog.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableName {
    /// Levels are separated by dots.
    pub namespace: String,
    /// The last part.
    pub name: String,
}

impl TableName {
    /// Parses `namespace.name`.
    ///
    /// # Errors
    /// `Config` when there is no namespace, or a part is empty or could leave its folder.
    pub fn parse(text: &str) -> Result<Self> {
        let wrong = |why: &str| {
            Error::config(format!("the table's name {why}: table={text}"))
                .hint("write namespace.name, of letters, digits, `_` and `-`")
        };
        let (namespace, name) = text
            .rsplit_once('.')
            .ok_or_else(|| wrong("has no namespace"))?;
        if text.split('.').any(str::is_empty) {
            return Err(wrong("has an empty part"));
        }
        let plain = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.');
        if !text.chars().all(plain) {
            return Err(wrong("has a character that a folder should not have"));
        }
        Ok(Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        })
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.namespace, self.name)
    }
}

/// A transform of a column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Term {
    pub(super) transform: Transform,
    pub(super) column: String,
}

impl Term {
    /// Parses `column` or `transform(column)`; the width or count of `bucket` and `truncate` may
    /// stand before or behind the column.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let text = text.trim();
        let wrong = || {
            Error::config(format!("not a column or a transform of one: term={text}")).hint(
                "write a column, or year(c), month(c), day(c), hour(c), bucket(16, c), truncate(4, c)",
            )
        };
        let Some((function, rest)) = text.split_once('(') else {
            return if text.is_empty() || text.contains(')') {
                Err(wrong())
            } else {
                Ok(Self {
                    transform: Transform::Identity,
                    column: text.to_owned(),
                })
            };
        };
        let inside = rest.strip_suffix(')').ok_or_else(wrong)?;
        let arguments: Vec<&str> = inside.split(',').map(str::trim).collect();
        let (column, count) = match arguments[..] {
            [column] => (column, None),
            [a, b] => match (a.parse::<u32>(), b.parse::<u32>()) {
                (Ok(count), _) => (b, Some(count)),
                (_, Ok(count)) => (a, Some(count)),
                _ => return Err(wrong()),
            },
            _ => return Err(wrong()),
        };
        let transform = match (function.trim().to_ascii_lowercase().as_str(), count) {
            ("identity", None) => Transform::Identity,
            ("year" | "years", None) => Transform::Year,
            ("month" | "months", None) => Transform::Month,
            ("day" | "days", None) => Transform::Day,
            ("hour" | "hours", None) => Transform::Hour,
            ("bucket", Some(1..=0x7fff_ffff)) => {
                Transform::Bucket(count.expect("matched as present"))
            }
            ("truncate", Some(1..=0x7fff_ffff)) => {
                Transform::Truncate(count.expect("matched as present"))
            }
            _ => return Err(wrong()),
        };
        if column.is_empty() || column.contains(['(', ')']) {
            return Err(wrong());
        }
        Ok(Self {
            transform,
            column: column.to_owned(),
        })
    }

    /// The conventional name of the partition field.
    pub(super) fn field_name(&self) -> String {
        let column = &self.column;
        match self.transform {
            Transform::Year => format!("{column}_year"),
            Transform::Month => format!("{column}_month"),
            Transform::Day => format!("{column}_day"),
            Transform::Hour => format!("{column}_hour"),
            Transform::Bucket(n) => format!("{column}_bucket_{n}"),
            Transform::Truncate(width) => format!("{column}_trunc_{width}"),
            _ => column.clone(),
        }
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.transform {
            Transform::Identity => f.write_str(&self.column),
            Transform::Bucket(n) => write!(f, "bucket({n}, {})", self.column),
            Transform::Truncate(width) => write!(f, "truncate({width}, {})", self.column),
            other => write!(f, "{other}({})", self.column),
        }
    }
}

/// A term with a direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SortTerm {
    pub(super) term: Term,
    pub(super) direction: SortDirection,
    pub(super) nulls: NullOrder,
}

impl SortTerm {
    /// Parses `term [asc|desc] [nulls first|nulls last]`; nulls come first when ascending.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let mut rest = text.trim();
        let mut nulls = None;
        let mut direction = SortDirection::Ascending;
        let cut = |rest: &str, suffix: &str| -> Option<usize> {
            let at = rest.len().checked_sub(suffix.len())?;
            let (head, tail) = (rest.get(..at)?, rest.get(at..)?);
            let apart = head.ends_with([' ', ')']);
            (apart && tail.eq_ignore_ascii_case(suffix)).then_some(at)
        };
        for (suffix, order) in [
            ("nulls first", NullOrder::First),
            ("nulls last", NullOrder::Last),
        ] {
            if let Some(at) = cut(rest, suffix) {
                (rest, nulls) = (rest[..at].trim_end(), Some(order));
            }
        }
        for (suffix, order) in [
            ("asc", SortDirection::Ascending),
            ("desc", SortDirection::Descending),
        ] {
            if let Some(at) = cut(rest, suffix) {
                (rest, direction) = (rest[..at].trim_end(), order);
            }
        }
        let nulls = nulls.unwrap_or(match direction {
            SortDirection::Ascending => NullOrder::First,
            SortDirection::Descending => NullOrder::Last,
        });
        Ok(Self {
            term: Term::parse(rest)?,
            direction,
            nulls,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terms_are_read_and_shown() {
        for (text, shown, field) in [
            ("region", "region", "region"),
            ("identity(region)", "region", "region"),
            (" day( ts ) ", "day(ts)", "ts_day"),
            ("Hours(ts)", "hour(ts)", "ts_hour"),
            ("bucket(16, id)", "bucket(16, id)", "id_bucket_16"),
            ("bucket(id,16)", "bucket(16, id)", "id_bucket_16"),
            ("truncate(4, sku)", "truncate(4, sku)", "sku_trunc_4"),
        ] {
            let term = Term::parse(text).expect(text);
            assert_eq!(term.to_string(), shown);
            assert_eq!(term.field_name(), field);
        }
        for text in [
            "",
            "day()",
            "day(ts",
            "day(ts))",
            "bucket(id)",
            "bucket(0, id)",
            "week(ts)",
        ] {
            assert!(Term::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sort_terms_are_read() {
        let term = SortTerm::parse("day(ts) desc nulls first").expect("a term");
        assert_eq!(term.term.to_string(), "day(ts)");
        assert_eq!(
            (term.direction, term.nulls),
            (SortDirection::Descending, NullOrder::First)
        );
        let term = SortTerm::parse("cdesc").expect("a column that ends like a direction");
        assert_eq!(
            (term.term.column.as_str(), term.nulls),
            ("cdesc", NullOrder::First)
        );
    }

    #[test]
    fn names_cannot_leave_the_warehouse() {
        assert_eq!(TableName::parse("a.b.c").expect("a name").namespace, "a.b");
        for text in [
            "orders", "a..b", ".b", "a.", "../x.y", "a/b.c", "a.b c", "a.b\0",
        ] {
            assert!(TableName::parse(text).is_err(), "{text}");
        }
    }
}
