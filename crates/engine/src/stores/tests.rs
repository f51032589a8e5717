use super::*;

fn environment() -> Vec<(String, String)> {
    let of = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    vec![
        of("AWS_ACCESS_KEY_ID", "env-key"),
        of("AWS_SECRET_ACCESS_KEY", "env-secret"),
        of("AWS_SESSION_TOKEN", "env-token"),
        of("AWS_REGION", "eu-central-1"),
        of("REGION", "not-ours"),
        of("BUCKET", "not-ours"),
    ]
}

fn named(prefix: &str, options: &[(&str, &str)]) -> Named {
    let options = options
        .iter()
        .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()));
    (prefix.to_owned(), options.collect())
}

fn value<'a>(options: &'a [(String, String)], name: &str) -> Option<&'a str> {
    let found = options.iter().rev().find(|(n, _)| n.ends_with(name));
    found.map(|(_, value)| value.as_str())
}

#[test]
fn an_entrys_own_credentials_replace_the_environments() {
    let own = [
        ("access_key_id", "mine"),
        ("secret_access_key", "my-secret"),
    ];
    let stores = Stores::new(
        environment(),
        vec![
            named("s3://data", &own),
            named("s3://data/in", &[("region", "us-west-1")]),
        ],
    );
    let at = |url| stores.options(url, Kind::S3).expect("options").0;
    let mine = at("s3://data/out");
    assert_eq!(value(&mine, "access_key_id"), Some("mine"));
    assert_eq!(value(&mine, "session_token"), None, "not another's token");
    assert_eq!(value(&mine, "region"), Some("eu-central-1"));
    let longer = at("s3://data/in/x");
    assert_eq!(value(&longer, "access_key_id"), Some("env-key"));
    assert_eq!(value(&longer, "region"), Some("us-west-1"));
    let other = at("s3://data2/out");
    assert_eq!(
        value(&other, "access_key_id"),
        Some("env-key"),
        "another bucket"
    );
    assert!(other.iter().all(|(_, value)| value != "not-ours"));
    let gcs = stores.options("gs://data/out", Kind::Gcs);
    assert!(gcs.expect("options").0.is_empty());
}

#[tokio::test]
async fn secrets_are_in_no_message() {
    let options = [
        ("access_key_id", "AKIDSEEN"),
        ("secret_access_key", "SECRETSEEN"),
        ("endpoint", "http://127.0.0.1:1"),
        ("allow_http", "true"),
    ];
    let stores = Stores::new(environment(), vec![named("s3://data", &options)]);
    let folder = stores.open("s3://data/out").expect("open");
    let text = |error: Error| format!("{error} {error:?} {:?}", error.hint_text());
    for text in [
        format!("{stores:?} {folder:?}"),
        text(folder.failed(
            "cannot",
            "x",
            &object_store::Error::Generic {
                store: "S3",
                source: "AKIDSEEN signed with SECRETSEEN".into(),
            },
        )),
    ] {
        assert!(!text.contains("SEEN"), "{text}");
    }
    let signed = stores
        .open("https://me:pass-SEEN@host/x?sig=SEEN")
        .expect("open");
    assert_eq!(signed.shown(), "https://host/x");
    let container = "abfss://lake@account.dfs.core.windows.net/x";
    assert_eq!(shown(container), container);
    assert!(!shown("abfss://lake:SEEN@host/x").contains("SEEN"));
    let bad = stores
        .open("nowhere://me:SEEN@host/x")
        .expect_err("unknown");
    assert!(!text(bad).contains("SEEN"));
}

#[tokio::test]
async fn names_are_kept_as_they_are() {
    let folder = ObjectFolder::in_memory().sub("table").expect("a place");
    let name = "region=%2E%2E/a b.parquet";
    folder.put(name, "x").await.expect("put");
    let listed = folder.list("", None).await.expect("list");
    assert_eq!(
        listed.iter().map(|f| f.name.as_str()).collect::<Vec<_>>(),
        [name]
    );
    assert!(folder.path("a/../b").is_err());
    let created = folder.create(name, "y").await.expect("create");
    assert_eq!(created, crate::durable::Created::Exists);
    let after = folder.list("", Some(name)).await.expect("list");
    assert!(after.is_empty());
}

struct Lends(Option<vended::VendedCredential>);

#[async_trait::async_trait]
impl Vendor for Lends {
    fn last(&self, _: &str) -> Option<vended::Vended> {
        Some(vended::Vended {
            options: vec![("region".to_owned(), "lent".to_owned())],
            credential: self.0.clone(),
        })
    }

    async fn fresh(&self, location: &str) -> Result<Option<vended::Vended>> {
        Ok(self.last(location))
    }
}

#[tokio::test]
async fn what_is_handed_out_stands_between_the_environment_and_the_file() {
    let keys = vended::VendedCredential::Keys("k".into(), "LENT-SEEN".into(), None);
    let own = [("access_key_id", "mine"), ("secret_access_key", "own")];
    let file = vec![
        named("s3://data", &own),
        named("s3://free", &[("region", "file")]),
    ];
    let stores = Stores::new(environment(), file).with_vendor(Arc::new(Lends(Some(keys))));
    let at = |url| stores.options(url, Kind::S3).expect("options");
    let (options, lent) = at("s3://other/t");
    assert!(lent.is_some());
    assert_eq!(value(&options, "region"), Some("lent"));
    assert_eq!(
        value(&options, "access_key_id"),
        None,
        "not the environment's"
    );
    let (options, lent) = at("s3://free/t");
    assert!(lent.is_some());
    assert_eq!(value(&options, "region"), Some("file"));
    let (options, lent) = at("s3://data/t");
    assert!(lent.is_none(), "the file's own credentials count");
    assert_eq!(value(&options, "access_key_id"), Some("mine"));
    assert!(!format!("{stores:?} {lent:?}").contains("SEEN"));
}

#[tokio::test]
async fn a_location_is_taken_character_for_character() {
    let stores = Stores::new(environment(), Vec::new());
    let place = stores.at("s3://x/a/b=%2F c/").expect("a place");
    assert_eq!(place.root().as_ref(), "a/b=%2F c");
    let again = stores.at("s3://x/a").expect("a place");
    assert!(
        Arc::ptr_eq(place.store(), again.store()),
        "one store for both"
    );
    assert!(stores.at("lake/t").is_err() && stores.at("s3:///t").is_err());
}
