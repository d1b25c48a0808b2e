//! Entries of `dbs` that stand for many databases.

use std::path::{Path, PathBuf};

use rhyolite_logic::pick::{Pattern, Pick, is_pattern};

use super::{DatabaseFile, absolute, apply_settings};
use crate::config::DatabaseConfig;
use crate::config::folder::FolderConfig;
use crate::config::settings::Settings;

/// The folder that an entry stands for; `None` when it names one database.
pub(super) fn resolve(file: &DatabaseFile, defaults: &Settings) -> Result<Option<FolderConfig>, String> {
    let (dir, pattern) = match (&file.dir, file.path.as_deref()) {
        (Some(_), Some(_)) => return Err("an entry has either `path` or `dir`".to_owned()),
        (Some(dir), None) => {
            let pattern = file.pattern.clone().ok_or("`dir` needs a `pattern` such as \"*.db\"")?;
            (dir.clone(), pattern)
        }
        (None, Some(path)) if is_pattern(path) => {
            let (dir, pattern) = split(path);
            if file.pattern.is_some() {
                return Err(format!("{path} is a pattern already: `pattern` goes with `dir`"));
            }
            (dir, pattern)
        }
        (None, _) => {
            check_single(file)?;
            return Ok(None);
        }
    };
    let name = format!("databases in {dir}");
    if file.meta_path.is_some() {
        return Err(format!("{name}: `meta-path` is for one database; many have `meta-dir`"));
    }
    let patterns = |texts: &mut dyn Iterator<Item = &String>| -> Result<Vec<Pattern>, String> {
        texts.map(|text| Pattern::new(text)).collect::<Result<_, _>>().map_err(|m| format!("{name}: {m}"))
    };
    let include = patterns(&mut std::iter::once(&pattern).chain(&file.include))?;
    let exclude = patterns(&mut file.exclude.iter())?;
    // A pattern with folders in it says itself that they are searched.
    let recursive = file.recursive.unwrap_or_else(|| file.dir.is_none() && pattern.contains('/'));
    let store = file.replica.store().map_err(|m| format!("{name}: {m}"))?;
    let credentials = file.replica.credentials(&store).map_err(|m| format!("{name}: {m}"))?;
    let path = absolute(&dir)?;
    let path = path.canonicalize().unwrap_or(path);
    let mut template = DatabaseConfig { credentials, ..DatabaseConfig::new(path.clone(), store) };
    apply_settings(file, defaults, &mut template).map_err(|m| format!("{name}: {m}"))?;
    let meta_path: Option<PathBuf> = file.meta_dir.as_deref().map(absolute).transpose()?;
    let watch = file.watch.unwrap_or(false);
    let mut folder = FolderConfig { dir: path, pick: Pick { include, exclude }, recursive, watch, meta_path, template };
    folder.share_lease();
    Ok(Some(folder))
}

/// Keys for many databases would have no effect on one.
fn check_single(file: &DatabaseFile) -> Result<(), String> {
    let keys = [
        ("pattern", file.pattern.is_some()),
        ("include", !file.include.is_empty()),
        ("exclude", !file.exclude.is_empty()),
        ("recursive", file.recursive.is_some()),
        ("watch", file.watch.is_some()),
        ("meta-dir", file.meta_dir.is_some()),
    ];
    match keys.iter().find(|(_, given)| *given) {
        Some((key, _)) => Err(format!("`{key}` goes with `dir`, or with a pattern as `path`")),
        None => Ok(()),
    }
}

/// The folder before the first part that is a pattern, and the rest.
fn split(path: &str) -> (String, String) {
    let parts: Vec<&str> = path.split('/').collect();
    let first = parts.iter().position(|part| is_pattern(part)).unwrap_or(parts.len() - 1);
    let dir = parts[..first].join("/");
    let dir = if dir.is_empty() && path.starts_with('/') { "/".to_owned() } else { dir };
    let dir = if Path::new(&dir).as_os_str().is_empty() { ".".to_owned() } else { dir };
    (dir, parts[first..].join("/"))
}
