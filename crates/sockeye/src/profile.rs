//! Which server, and with which token: the profiles that `login` stores, and what overrides them.
//!
//! ```text
//!   --server URL  >  --profile P  >  SOCKEYE_SERVER  >  the profile of the last login
//!   token: with --profile the profile's; otherwise SOCKEYE_TOKEN, then that of the profile with the same address
//! ```
//!
//! # Always true
//! - A profile's token is only ever sent to that profile's server.
//! - The file is readable by its owner only, and replaced as a whole: a power cut leaves the old or the new one.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use protocol::Fault;
use protocol::fault::code;
use serde::{Deserialize, Serialize};

use crate::cli::Global;
use crate::ending::{Ending, Trouble};
use crate::fault;

/// Where the server is and how to sign in to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// Base URL without a slash at its end.
    pub server: String,
    /// The bearer token, if one is known.
    pub token: Option<String>,
}

/// The file of profiles.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Profiles {
    /// The profile of the last login.
    default: Option<String>,
    #[serde(default)]
    profile: BTreeMap<String, Profile>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Profile {
    server: String,
    token: String,
}

/// What the environment says.
#[derive(Debug, Default)]
pub struct Environment {
    /// `SOCKEYE_SERVER`.
    pub server: Option<String>,
    /// `SOCKEYE_TOKEN`.
    pub token: Option<String>,
    /// The file of profiles.
    pub file: Option<PathBuf>,
}

impl Environment {
    /// Reads it.
    pub fn read() -> Environment {
        let text = |name| std::env::var(name).ok().map(|text| text.trim().to_string()).filter(|text| !text.is_empty());
        let file = text("SOCKEYE_CONFIG")
            .map(PathBuf::from)
            .or_else(|| text("XDG_CONFIG_HOME").map(|dir| Path::new(&dir).join("sockeye/profiles.toml")))
            .or_else(|| text("HOME").map(|dir| Path::new(&dir).join(".config/sockeye/profiles.toml")));
        Environment { server: text("SOCKEYE_SERVER"), token: text("SOCKEYE_TOKEN"), file }
    }
}

/// Finds out which server is meant.
///
/// # Errors
/// No server is named anywhere, the profile does not exist, or the file cannot be read: exit code 5.
pub fn find(global: &Global, environment: &Environment) -> Result<Access, Trouble> {
    let profiles = || load(environment.file.as_deref());
    if let Some(name) = &global.profile {
        let found = profiles()?.profile.remove(name);
        let found =
            found.ok_or_else(|| refused(format!("there is no profile {name:?}"), "no login stored it".into()))?;
        return Ok(Access { server: tidy(&found.server)?, token: Some(found.token) });
    }
    if let Some(server) = global.server.as_ref().or(environment.server.as_ref()) {
        let server = tidy(server)?;
        let token = match &environment.token {
            Some(token) => Some(token.clone()),
            None => {
                profiles()?.profile.into_values().find(|profile| profile.server == server).map(|profile| profile.token)
            }
        };
        return Ok(Access { server, token });
    }
    let mut profiles = profiles()?;
    let found = profiles.default.as_ref().and_then(|name| profiles.profile.remove(name));
    let found = found.ok_or_else(|| {
        let fault = Fault::new(
            code::SIGN_IN,
            "no control server is known",
            "neither --server, SOCKEYE_SERVER nor a stored profile names one",
        );
        Trouble::new(Ending::Unreached, fault.with_remedy("sign in: sockeye login http://127.0.0.1:7410"))
    })?;
    Ok(Access { server: found.server, token: Some(environment.token.clone().unwrap_or(found.token)) })
}

/// Stores a profile and makes it the one that is used when nothing else is said. Gives the file's path.
///
/// # Errors
/// The file cannot be read or replaced.
pub fn store(environment: &Environment, name: &str, access: &Access) -> Result<PathBuf, Trouble> {
    let Some(file) = environment.file.as_deref() else {
        return Err(refused("the profile cannot be stored".into(), "neither SOCKEYE_CONFIG nor HOME is set".into()));
    };
    let mut profiles = load(Some(file))?;
    let profile = Profile { server: access.server.clone(), token: access.token.clone().unwrap_or_default() };
    profiles.profile.insert(name.to_string(), profile);
    profiles.default = Some(name.to_string());
    let wrong = |why: String| refused(format!("{} cannot be written", file.display()), why);
    let text = toml::to_string(&profiles).map_err(|why| wrong(why.to_string()))?;
    replace(file, text.as_bytes()).map_err(|why| wrong(why.to_string()))?;
    Ok(file.to_path_buf())
}

/// Checks a server's address and cuts what would double a slash.
///
/// # Errors
/// It is no `http://` address: exit code 2.
pub fn tidy(server: &str) -> Result<String, Trouble> {
    let server = server.trim().trim_end_matches('/');
    let host = server.strip_prefix("http://").unwrap_or_default();
    if host.is_empty() || host.contains(['/', ' ', '@', '?', '#']) {
        let cause = "an address looks like http://HOST:PORT (this version speaks no https yet)";
        return Err(Trouble::usage(format!("{server:?} is no address of a control server"), cause));
    }
    Ok(server.to_string())
}

fn load(file: Option<&Path>) -> Result<Profiles, Trouble> {
    let Some(file) = file else { return Ok(Profiles::default()) };
    match std::fs::read_to_string(file) {
        Ok(text) => {
            // The parser's own message quotes the line, which may hold a token: only its place is told.
            let broken =
                |_| refused(format!("{} is not understood", file.display()), "it is no valid file of profiles".into());
            toml::from_str(&text).map_err(broken)
        }
        Err(why) if why.kind() == std::io::ErrorKind::NotFound => Ok(Profiles::default()),
        Err(why) => Err(refused(format!("{} cannot be read", file.display()), why.to_string())),
    }
}

fn replace(file: &Path, content: &[u8]) -> std::io::Result<()> {
    if let Some(dir) = file.parent().filter(|dir| !dir.as_os_str().is_empty()) {
        std::fs::create_dir_all(dir)?;
    }
    let mut name = file.as_os_str().to_owned();
    name.push(format!(".{}", std::process::id()));
    let fresh = PathBuf::from(name);
    let write = || {
        let mut out = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        out.write_all(content)?;
        out.sync_all()?;
        std::fs::rename(&fresh, file)
    };
    write().inspect_err(|_| {
        let _ = std::fs::remove_file(&fresh);
    })
}

fn refused(message: String, cause: String) -> Trouble {
    Trouble::new(Ending::Unreached, Fault::new(fault::PROFILE, message, cause))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Output;
    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;

    fn global(server: Option<&str>, profile: Option<&str>) -> Global {
        let text = |text: Option<&str>| text.map(str::to_string);
        Global { output: Output::Table, server: text(server), profile: text(profile), patience: Duration::from_secs(1) }
    }

    fn access(server: &str, token: &str) -> Access {
        Access { server: server.into(), token: Some(token.into()) }
    }

    #[test]
    fn the_last_login_is_used_unless_something_else_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let mut environment =
            Environment { file: Some(dir.path().join("new/profiles.toml")), ..Environment::default() };
        assert_eq!(find(&global(None, None), &environment).unwrap_err().ending, Ending::Unreached);
        store(&environment, "default", &access("http://a:1", "A")).unwrap();
        let file = store(&environment, "other", &access("http://b:2", "B")).unwrap();
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);

        assert_eq!(find(&global(None, None), &environment).unwrap(), access("http://b:2", "B"));
        assert_eq!(find(&global(None, Some("default")), &environment).unwrap(), access("http://a:1", "A"));
        assert_eq!(find(&global(Some("http://a:1/"), None), &environment).unwrap(), access("http://a:1", "A"));
        assert!(find(&global(None, Some("nobody")), &environment).is_err());
        environment.server = Some("http://c:3".into());
        environment.token = Some("C".into());
        assert_eq!(find(&global(None, None), &environment).unwrap(), access("http://c:3", "C"));
        assert_eq!(find(&global(None, Some("default")), &environment).unwrap(), access("http://a:1", "A"));
    }

    #[test]
    fn a_stored_token_is_not_sent_to_another_server() {
        let dir = tempfile::tempdir().unwrap();
        let environment = Environment { file: Some(dir.path().join("profiles.toml")), ..Environment::default() };
        store(&environment, "default", &access("http://a:1", "secret")).unwrap();
        assert_eq!(find(&global(Some("http://evil:1"), None), &environment).unwrap().token, None);
    }

    #[test]
    fn what_is_no_address_is_a_usage_error() {
        for bad in ["", "a:1", "ftp://a", "https://a:1", "http://", "http://u@a", "http://a/x"] {
            assert_eq!(tidy(bad).unwrap_err().ending, Ending::Usage, "{bad}");
        }
    }
}
