//! The AWS command line's profile files: static keys and the region, no more.
//!
//! `~/.aws/credentials` has sections `[name]`, `~/.aws/config` has `[profile name]` (and `[default]`). A profile that gets its keys
//! by other means (SSO, a process, another role) is named in the error: nothing is tried in its stead.

use crate::Environment;

/// What a profile says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Profile {
    pub(super) access_key_id: Option<String>,
    pub(super) secret_access_key: Option<String>,
    pub(super) session_token: Option<String>,
    pub(super) region: Option<String>,
    /// A setting by which this profile gets keys that are not understood here.
    pub(super) foreign: Option<String>,
}

/// Reads a profile from the two files of the environment. `None` if neither file has it.
pub(super) fn load(environment: &Environment, name: &str) -> Option<Profile> {
    let home = environment.get("HOME").unwrap_or_default();
    let read = |variable: &str, default: &str| {
        let path = environment.get(variable).unwrap_or_else(|| format!("{home}/.aws/{default}"));
        std::fs::read_to_string(path).unwrap_or_default()
    };
    let credentials = read("AWS_SHARED_CREDENTIALS_FILE", "credentials");
    let config = read("AWS_CONFIG_FILE", "config");
    merge(&credentials, &config, name)
}

fn merge(credentials: &str, config: &str, name: &str) -> Option<Profile> {
    let mut profile = Profile::default();
    let in_credentials = apply(&mut profile, credentials, &[name]);
    let long = format!("profile {name}");
    let sections: &[&str] = if name == "default" { &["default", &long] } else { &[&long] };
    let in_config = apply(&mut profile, config, sections);
    (in_credentials || in_config).then_some(profile)
}

/// Takes the settings of the sections over, without replacing what is there. Is one of the sections in the file?
fn apply(profile: &mut Profile, file: &str, sections: &[&str]) -> bool {
    let (mut inside, mut found) = (false, false);
    for line in file.lines() {
        // Indented lines are settings of a setting.
        let nested = line.starts_with([' ', '\t']);
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(section) = line.strip_prefix('[').and_then(|l| l.split(']').next()) {
            let section = section.split_whitespace().collect::<Vec<_>>().join(" ");
            inside = sections.contains(&section.as_str());
            found |= inside;
        } else if inside
            && !nested
            && let Some((name, value)) = line.split_once('=')
        {
            set(profile, name.trim(), value.trim());
        }
    }
    found
}

fn set(profile: &mut Profile, name: &str, value: &str) {
    let field = match name {
        "aws_access_key_id" => &mut profile.access_key_id,
        "aws_secret_access_key" => &mut profile.secret_access_key,
        "aws_session_token" => &mut profile.session_token,
        "region" => &mut profile.region,
        "credential_process" | "role_arn" | "sso_session" | "sso_start_url" | "web_identity_token_file" => {
            profile.foreign.get_or_insert_with(|| name.to_owned());
            return;
        }
        _ => return,
    };
    field.get_or_insert_with(|| value.to_owned());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_files_make_one_profile() {
        let credentials =
            "# keys\n[default]\naws_access_key_id = A\naws_secret_access_key=S=\n[other]\naws_access_key_id=B\n";
        let config = "[default]\nregion = eu-west-1\ns3 =\n  region = nested\n[profile other]\nregion=us-west-2\nsso_session=x\n";
        let default = merge(credentials, config, "default").unwrap();
        assert_eq!(default.access_key_id.as_deref(), Some("A"));
        assert_eq!(default.secret_access_key.as_deref(), Some("S="));
        assert_eq!((default.region.as_deref(), default.foreign), (Some("eu-west-1"), None));
        let other = merge(credentials, config, "other").unwrap();
        assert_eq!((other.region.as_deref(), other.foreign.as_deref()), (Some("us-west-2"), Some("sso_session")));
        assert_eq!(merge(credentials, config, "third"), None);
        assert_eq!(merge("", "[third]\nregion=x", "third"), None, "only the default goes without the word profile");
    }
}
