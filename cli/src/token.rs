//! Making tokens for development: with the secret of an instance on this machine, or with a configured one.

use std::time::{Duration, SystemTime};

use anyhow::{Result, anyhow, ensure};
use chatbox_proto::{
    settings::{self, Mistakes, Vars},
    token::{MintClaims, Role, Secret, TokenConfig, Verifier, mint_hs256},
};
use serde::{Deserialize, Serialize};

use crate::data_dir::DataDir;

/// The role whose variables say how tokens are verified.
const ROLE: &str = "CORE";

/// Whom a token is for.
#[derive(Debug, Clone)]
pub(crate) struct Subject {
    pub(crate) user_id: String,
    pub(crate) display_name: String,
    pub(crate) roles: Vec<Role>,
    pub(crate) scopes: Vec<String>,
    pub(crate) lifetime: Duration,
}

/// Signs tokens that one instance accepts.
#[derive(Debug, Clone)]
pub(crate) struct Minter(TokenConfig);

/// The section of core's configuration that concerns tokens; the others are not looked at.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct TokenSection {
    token: TokenConfig,
}

impl Minter {
    /// For an instance with these settings.
    pub(crate) fn new(config: TokenConfig) -> Result<Self> {
        ensure!(
            config.algorithm.is_symmetric(),
            "token.algorithm is {}: only your issuer can sign such tokens, this command signs HS256",
            config.algorithm.name()
        );
        Ok(Self(config))
    }

    /// For the instance in a folder, whose secret is made when it is not there. Variables count as for `chatbox dev`.
    pub(crate) fn for_data_dir(data: &DataDir, vars: &Vars) -> Result<Self> {
        let mut config = section(None, vars)?;
        if config.secret.is_empty() && config.algorithm.is_symmetric() {
            config.secret = data.token_secret()?;
        }
        Self::checked(config)
    }

    /// For a core with this TOML file.
    pub(crate) fn for_config(toml: &str, vars: &Vars) -> Result<Self> {
        Self::checked(section(Some(toml), vars)?)
    }

    /// For a secret from elsewhere.
    pub(crate) fn for_secret(secret: &str, vars: &Vars) -> Result<Self> {
        let mut config = section(None, vars)?;
        config.secret = Secret::new(secret);
        Self::checked(config)
    }

    fn checked(config: TokenConfig) -> Result<Self> {
        let minter = Self::new(config)?;
        Mistakes(minter.0.check(false)).into_result()?;
        Ok(minter)
    }

    /// A token for this subject; it is verified before it is handed out.
    pub(crate) fn mint(&self, subject: &Subject) -> Result<String> {
        let config = &self.0;
        let issued_at = SystemTime::now();
        let token = mint_hs256(
            &config.secret,
            &MintClaims {
                user_id: subject.user_id.clone(),
                display_name: subject.display_name.clone(),
                roles: subject.roles.clone(),
                scopes: subject.scopes.clone(),
                issuer: config.issuer.clone(),
                audience: config.audience.clone(),
                issued_at,
                lifetime: subject.lifetime,
            },
        );
        let verifier = Verifier::new(config, None).map_err(|error| anyhow!("token: {error}"))?;
        verifier.verify(&token, issued_at).map_err(|error| anyhow!("such a token would be refused: {error}"))?;
        Ok(token)
    }
}

/// The other settings of core are none of this command's business, not even their mistakes.
fn section(toml: Option<&str>, vars: &Vars) -> Result<TokenConfig, Mistakes> {
    let concerns = |name: &str| {
        let rest = name.strip_prefix("CHATBOX_").map(|rest| rest.strip_prefix("CORE_").unwrap_or(rest));
        rest.is_some_and(|rest| rest.starts_with("TOKEN_"))
    };
    let vars = vars.iter().filter(|(name, _)| concerns(name)).map(|(name, value)| (name.clone(), value.clone()));
    let mut config = settings::load::<TokenSection>(toml, ROLE, &vars.collect())?.token;
    config.read_secret(&|path| std::fs::read_to_string(path)).map_err(|mistake| Mistakes(vec![mistake]))?;
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "9pYb3mQx7LrT2vWc8KdF5hJnZsGa4EuM";

    fn alice() -> Subject {
        Subject {
            user_id: "alice".to_owned(),
            display_name: "Alice".to_owned(),
            roles: vec![Role::User],
            scopes: Vec::new(),
            lifetime: Duration::from_secs(60),
        }
    }

    #[test]
    fn a_token_of_the_folder_says_who_it_is_for() {
        let folder = tempfile::tempdir().unwrap();
        let data = DataDir::open(folder.path()).unwrap();
        let token = Minter::for_data_dir(&data, &Vars::new()).unwrap().mint(&alice()).unwrap();
        let config = TokenConfig { secret: data.token_secret().unwrap(), ..TokenConfig::default() };
        let identity = Verifier::new(&config, None).unwrap().verify(&token, SystemTime::now()).unwrap();
        assert_eq!((identity.user_id.as_str(), identity.display_name.as_str()), ("alice", "Alice"));
        assert!(identity.roles.contains(Role::User));
    }

    #[test]
    fn issuer_and_audience_are_those_of_the_configuration() {
        let toml = format!(
            "profile = \"dev\"\n[token]\nsecret = \"{SECRET}\"\nissuer = \"https://id.test\"\n[store]\nurl = \"x\"\n"
        );
        let vars = Vars::from([
            ("CHATBOX_CORE_TOKEN_AUDIENCE".to_owned(), "chatbox".to_owned()),
            ("CHATBOX_CORE_MISSPELT".to_owned(), "not ours to judge".to_owned()),
        ]);
        let token = Minter::for_config(&toml, &vars).unwrap().mint(&alice()).unwrap();
        let config = TokenConfig {
            secret: Secret::new(SECRET),
            issuer: "https://id.test".to_owned(),
            audience: "chatbox".to_owned(),
            ..TokenConfig::default()
        };
        Verifier::new(&config, None).unwrap().verify(&token, SystemTime::now()).unwrap();
        let other = TokenConfig { audience: "another".to_owned(), ..config };
        assert!(Verifier::new(&other, None).unwrap().verify(&token, SystemTime::now()).is_err());
    }

    #[test]
    fn what_would_be_refused_is_not_handed_out() {
        let minter = Minter::for_secret(SECRET, &Vars::new()).unwrap();
        assert!(minter.mint(&Subject { user_id: String::new(), ..alice() }).is_err());
        assert!(minter.mint(&Subject { user_id: "a\nb".to_owned(), ..alice() }).is_err());
        assert!(Minter::for_secret("short", &Vars::new()).is_err());
        let toml = "[token]\nalgorithm = \"ES256\"\njwks_url = \"https://id.test/keys\"\n";
        let error = Minter::for_config(toml, &Vars::new()).unwrap_err().to_string();
        assert!(error.contains("ES256"), "{error}");
    }
}
