//! What AWS's own files say: `~/.aws/credentials` and `~/.aws/config`, for the profile that `AWS_PROFILE`
//! names, or `default`. Keys, session token, region, endpoint, and a role with a web identity; what a
//! profile has besides (`sso`, `credential_process`, `source_profile`) is not known here, and said so.

use std::{collections::BTreeMap, fs, path::PathBuf};

/// Where the files are, if nothing else says it.
pub(super) const HOME: &str = "HOME";

/// Names in a profile, and those of the environment.
const KNOWN: [(&str, &str); 8] = [
    ("aws_access_key_id", "aws_access_key_id"),
    ("aws_secret_access_key", "aws_secret_access_key"),
    ("aws_session_token", "aws_session_token"),
    ("region", "aws_region"),
    ("endpoint_url", "aws_endpoint_url"),
    ("role_arn", "aws_role_arn"),
    ("role_session_name", "aws_role_session_name"),
    ("web_identity_token_file", "aws_web_identity_token_file"),
];
/// Ways to credentials that only AWS's own programs go.
const UNKNOWN: [&str; 5] = [
    "credential_process",
    "source_profile",
    "credential_source",
    "sso_session",
    "sso_start_url",
];

/// The options of the profile, by the names of the environment in small letters. Nothing where the
/// environment says itself who we are, or nothing names a profile and there is none.
pub(super) fn resolve(environment: &[(String, String)]) -> Result<Vec<(String, String)>, String> {
    let var = |name: &str| {
        let found = environment.iter().find(|(n, _)| n == name);
        found.map(|(_, v)| v.as_str()).filter(|v| !v.is_empty())
    };
    let named = var("AWS_PROFILE").or_else(|| var("AWS_DEFAULT_PROFILE"));
    let keys = var("AWS_ACCESS_KEY_ID").is_some();
    // As AWS's own tools do: keys of the environment count before a profile, a role behind it.
    let role = var("AWS_WEB_IDENTITY_TOKEN_FILE").is_some() && named.is_none();
    let file = |var_name: &str, name: &str| {
        let named = var(var_name).map(PathBuf::from);
        let path = named.or_else(|| Some(PathBuf::from(var(HOME)?).join(".aws").join(name)))?;
        fs::read_to_string(path).ok()
    };
    let mut profile = BTreeMap::new();
    let mut found = false;
    let name = named.unwrap_or("default");
    for (text, section) in [
        (file("AWS_CONFIG_FILE", "config"), format!("profile {name}")),
        (
            file("AWS_SHARED_CREDENTIALS_FILE", "credentials"),
            name.to_owned(),
        ),
    ] {
        let Some(text) = text else { continue };
        let sections = parse(&text);
        let here = sections.get(section.as_str());
        // In the one file the default profile has no word before its name.
        let here = here.or_else(|| sections.get(name).filter(|_| name == "default"));
        if let Some(here) = here {
            found = true;
            profile.extend(here.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())));
        }
    }
    if !found {
        return match named.filter(|_| !keys) {
            Some(name) => Err(format!("there is no such profile: profile={name}")),
            None => Ok(Vec::new()),
        };
    }
    let has = |key: &str| profile.contains_key(key);
    let web = has("role_arn") && has("web_identity_token_file");
    let other = UNKNOWN.iter().find(|key| has(key));
    if let (Some(name), Some(key), false) = (named, other, keys || web || has("aws_access_key_id"))
    {
        return Err(format!(
            "the profile gets its credentials in a way that is not supported: profile={name} key={key}"
        ));
    }
    let says_who = |name: &str| !matches!(name, "aws_region" | "aws_endpoint_url");
    let known = KNOWN
        .iter()
        .filter(|(_, name)| !((keys || role) && says_who(name)))
        // A role without a web identity needs another profile's keys.
        .filter(|(key, _)| web || !matches!(*key, "role_arn" | "role_session_name"));
    Ok(known
        .filter_map(|(key, name)| Some(((*name).to_owned(), profile.get(*key)?.clone())))
        .collect())
}

/// Sections with their settings. What belongs to a setting before it (indented lines) is left out.
fn parse(text: &str) -> BTreeMap<&str, BTreeMap<&str, &str>> {
    let mut sections: BTreeMap<&str, BTreeMap<&str, &str>> = BTreeMap::new();
    let mut section = None;
    for line in text.lines() {
        let plain = line.trim();
        if plain.is_empty() || plain.starts_with(['#', ';']) {
            continue;
        }
        if let Some(name) = plain.strip_prefix('[').and_then(|n| n.split(']').next()) {
            section = Some(sections.entry(name.trim()).or_default());
        } else if let (Some(section), Some((key, value)), false) = (
            &mut section,
            plain.split_once('='),
            line.starts_with([' ', '\t']),
        ) {
            section.insert(key.trim(), value.trim());
        }
    }
    sections
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(config: &str, credentials: &str, vars: &[(&str, &str)]) -> Result<String, String> {
        let dir = tempfile::tempdir().expect("a folder");
        let aws = dir.path().join(".aws");
        fs::create_dir(&aws).expect("a folder");
        fs::write(aws.join("config"), config).expect("a file");
        fs::write(aws.join("credentials"), credentials).expect("a file");
        let mut vars: Vec<(String, String)> = vars
            .iter()
            .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()))
            .collect();
        vars.push((HOME.to_owned(), dir.path().display().to_string()));
        let pairs = resolve(&vars)?;
        let pairs: Vec<String> = pairs.iter().map(|(n, v)| format!("{n}={v}")).collect();
        Ok(pairs.join(" "))
    }

    #[test]
    fn a_profile_is_taken_as_the_tools_of_aws_do() {
        let config = "[default]\nregion = eu-west-1\ns3 =\n  addressing_style = path\n\
                      [profile p]\nregion=us-east-2\nendpoint_url = http://h:1\n\
                      [profile r]\nrole_arn=a\nweb_identity_token_file=/t\n[profile s]\nsso_session=x\n";
        let credentials = "# mine\n[default]\naws_access_key_id = d\naws_secret_access_key=ds\n\
                           [p]\naws_access_key_id=k\naws_secret_access_key = s=/+\naws_session_token=t\n";
        let of = |vars: &[(&str, &str)]| resolved(config, credentials, vars);
        assert_eq!(
            of(&[]).as_deref(),
            Ok("aws_access_key_id=d aws_secret_access_key=ds aws_region=eu-west-1")
        );
        assert_eq!(
            of(&[("AWS_PROFILE", "p")]).as_deref(),
            Ok(
                "aws_access_key_id=k aws_secret_access_key=s=/+ aws_session_token=t \
                 aws_region=us-east-2 aws_endpoint_url=http://h:1"
            )
        );
        assert_eq!(
            of(&[("AWS_PROFILE", "r")]).as_deref(),
            Ok("aws_role_arn=a aws_web_identity_token_file=/t")
        );
        let own = of(&[("AWS_ACCESS_KEY_ID", "x"), ("AWS_PROFILE", "p")]);
        assert_eq!(
            own.as_deref(),
            Ok("aws_region=us-east-2 aws_endpoint_url=http://h:1")
        );
        let pod = of(&[("AWS_WEB_IDENTITY_TOKEN_FILE", "/w")]);
        assert_eq!(pod.as_deref(), Ok("aws_region=eu-west-1"));
        assert!(of(&[("AWS_PROFILE", "gone")]).is_err());
        let sso = of(&[("AWS_PROFILE", "s")]).expect_err("not supported");
        assert!(sso.contains("sso_session"), "{sso}");
        assert_eq!(resolved("", "", &[]).as_deref(), Ok(""));
    }
}
