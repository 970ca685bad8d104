//! From the claims of a verified token to an [`Identity`].

use std::{
    collections::BTreeSet,
    fmt,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::Deserialize;

use super::TokenError;

const MAX_USER_ID_BYTES: usize = 255;
const MAX_DISPLAY_NAME_CHARS: usize = 100;
const MAX_ROLES: usize = 64;
const MAX_SCOPES: usize = 32;
const MAX_SCOPE_BYTES: usize = 64;

/// The last second of the year 9999, the last that an RFC 3339 timestamp can show.
const MAX_TIME: f64 = 253_402_300_799.0;

/// Who makes a call, from the verified token alone.
#[derive(Clone, PartialEq, Eq)]
pub struct Identity {
    /// Subject of the token: 1 to 255 bytes without control characters.
    pub user_id: String,
    /// Name to show: at most 100 characters without control characters; may be empty.
    pub display_name: String,
    /// What the caller may be. Empty when the token names only roles we do not know: such a caller may do nothing.
    pub roles: Roles,
    /// What a service may do; meaningless for others.
    pub scopes: BTreeSet<String>,
    /// When a live connection with this token must end: `exp`, or the end of the leeway for a token that was taken
    /// within it.
    pub expires_at: SystemTime,
}

impl Identity {
    /// Whether the caller is a service with this scope.
    #[must_use]
    pub fn is_service_with(&self, scope: &str) -> bool {
        self.roles.contains(Role::Service) && self.scopes.contains(scope)
    }

    /// Whether another token may take the place of this one on a live connection: same subject, roles and scopes.
    #[must_use]
    pub fn same_caller(&self, other: &Self) -> bool {
        self.user_id == other.user_id && self.roles == other.roles && self.scopes == other.scopes
    }
}

/// Names are personal data: a log shows roles and ids only where it means to.
impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("user_id", &self.user_id).field("roles", &self.roles).finish_non_exhaustive()
    }
}

/// What a caller may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Role {
    /// A visitor: `user`.
    User = 1,
    /// A person of the team who may take over: `chat_admin`.
    ChatAdmin = 2,
    /// An operator: `admin`.
    Admin = 4,
    /// A program: `service`.
    Service = 8,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 4] = [Self::User, Self::ChatAdmin, Self::Admin, Self::Service];

    /// As in the claim `roles`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::ChatAdmin => "chat_admin",
            Self::Admin => "admin",
            Self::Service => "service",
        }
    }

    /// From the claim `roles`; `None` for a role we do not know.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.name() == name)
    }
}

/// A set of roles.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Roles(u8);

impl Roles {
    /// Whether the set has the role.
    #[must_use]
    pub const fn contains(self, role: Role) -> bool {
        self.0 & role as u8 != 0
    }

    /// Whether the set has any of the roles.
    #[must_use]
    pub fn contains_any(self, roles: &[Role]) -> bool {
        roles.iter().any(|role| self.contains(*role))
    }

    /// The roles in the set.
    pub fn iter(self) -> impl Iterator<Item = Role> {
        Role::ALL.into_iter().filter(move |role| self.contains(*role))
    }
}

impl FromIterator<Role> for Roles {
    fn from_iter<I: IntoIterator<Item = Role>>(roles: I) -> Self {
        Self(roles.into_iter().fold(0, |set, role| set | role as u8))
    }
}

impl fmt::Debug for Roles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter().map(Role::name)).finish()
    }
}

/// The claims we read. A claim given twice does not deserialise, so that two readers cannot see two different tokens.
#[derive(Deserialize)]
pub(super) struct Claims {
    #[serde(default)]
    sub: Option<String>,
    #[serde(default)]
    user_id: Option<String>,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    roles: Option<OneOrMany>,
    #[serde(default)]
    scope: Option<String>,
    #[serde(default)]
    scopes: Option<OneOrMany>,
    #[serde(default)]
    exp: Option<f64>,
    #[serde(default)]
    nbf: Option<f64>,
    #[serde(default)]
    iss: Option<String>,
    #[serde(default)]
    aud: Option<OneOrMany>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    fn as_slice(&self) -> &[String] {
        match self {
            Self::One(value) => std::slice::from_ref(value),
            Self::Many(values) => values,
        }
    }
}

/// What the configuration demands of the registered claims.
pub(super) struct Demands {
    pub(super) issuer: String,
    pub(super) audience: String,
    pub(super) leeway: Duration,
}

impl Claims {
    pub(super) fn into_identity(self, demands: &Demands, now: SystemTime) -> Result<Identity, TokenError> {
        let expires_at = self.expiry(demands.leeway, now)?;
        self.check_parties(demands)?;
        let user_id = match (self.sub, self.user_id) {
            (Some(sub), Some(alias)) if sub != alias => return Err(TokenError::BadClaim("user_id")),
            (Some(id), _) | (None, Some(id)) => id,
            (None, None) => return Err(TokenError::MissingClaim("sub")),
        };
        if user_id.is_empty() || user_id.len() > MAX_USER_ID_BYTES || user_id.trim() != user_id {
            return Err(TokenError::BadClaim("sub"));
        }
        if user_id.chars().any(is_invisible) {
            return Err(TokenError::BadClaim("sub"));
        }
        Ok(Identity {
            user_id,
            display_name: display_name(self.name.as_deref().unwrap_or_default()),
            roles: roles(self.roles.as_ref())?,
            scopes: scopes(self.scope.as_deref(), self.scopes.as_ref())?,
            expires_at,
        })
    }

    fn expiry(&self, leeway: Duration, now: SystemTime) -> Result<SystemTime, TokenError> {
        let exp = time(self.exp.ok_or(TokenError::MissingClaim("exp"))?, "exp")?;
        let last = exp + leeway;
        if now >= last {
            return Err(TokenError::Expired);
        }
        if let Some(nbf) = self.nbf
            && now + leeway < time(nbf, "nbf")?
        {
            return Err(TokenError::NotYetValid);
        }
        Ok(if now < exp { exp } else { last })
    }

    /// Issuer and audience. A token that names audiences is refused unless it names ours, also when no audience is
    /// configured: RFC 7519 section 4.1.3 wants it so, and it keeps out tokens that were made for another service of
    /// the same issuer.
    fn check_parties(&self, demands: &Demands) -> Result<(), TokenError> {
        if !demands.issuer.is_empty() && self.iss.as_deref() != Some(&demands.issuer) {
            return Err(TokenError::WrongIssuer);
        }
        match &self.aud {
            Some(named) if demands.audience.is_empty() || !named.as_slice().contains(&demands.audience) => {
                Err(TokenError::WrongAudience)
            }
            None if !demands.audience.is_empty() => Err(TokenError::WrongAudience),
            Some(_) | None => Ok(()),
        }
    }
}

fn time(seconds: f64, claim: &'static str) -> Result<SystemTime, TokenError> {
    if !(0.0..=MAX_TIME).contains(&seconds) {
        return Err(TokenError::BadClaim(claim));
    }
    Ok(UNIX_EPOCH + Duration::from_secs_f64(seconds))
}

/// Control characters, and those that hide or reorder the text around them: they make two names look alike.
fn is_invisible(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

fn display_name(claim: &str) -> String {
    let shown: String = claim.trim().chars().filter(|c| !is_invisible(*c)).take(MAX_DISPLAY_NAME_CHARS).collect();
    shown.trim_end().to_owned()
}

fn roles(claim: Option<&OneOrMany>) -> Result<Roles, TokenError> {
    let Some(claim) = claim else { return Ok(Roles::from_iter([Role::User])) };
    let names = claim.as_slice();
    if names.len() > MAX_ROLES {
        return Err(TokenError::BadClaim("roles"));
    }
    Ok(names.iter().filter_map(|name| Role::from_name(name)).collect())
}

fn scopes(scope: Option<&str>, scopes: Option<&OneOrMany>) -> Result<BTreeSet<String>, TokenError> {
    let spaced = scope.unwrap_or_default().split_ascii_whitespace();
    let listed = scopes.map(OneOrMany::as_slice).unwrap_or_default().iter().map(String::as_str);
    let all: Vec<&str> = spaced.chain(listed).take(MAX_SCOPES + 1).collect();
    if all.len() > MAX_SCOPES || all.iter().any(|scope| scope.is_empty() || scope.len() > MAX_SCOPE_BYTES) {
        return Err(TokenError::BadClaim("scope"));
    }
    Ok(all.into_iter().map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn read(json: &str) -> Result<Identity, TokenError> {
        read_with(json, "", "")
    }

    fn read_with(json: &str, issuer: &str, audience: &str) -> Result<Identity, TokenError> {
        let claims: Claims = serde_json::from_str(json).map_err(|_| TokenError::Malformed)?;
        let demands =
            Demands { issuer: issuer.to_owned(), audience: audience.to_owned(), leeway: Duration::from_secs(30) };
        claims.into_identity(&demands, UNIX_EPOCH + Duration::from_secs(NOW))
    }

    fn with(extra: &str) -> String {
        format!(r#"{{"sub":"alice","exp":{}{extra}}}"#, NOW + 60)
    }

    #[test]
    fn a_token_without_roles_is_a_users() {
        let identity = read(&with("")).unwrap();
        assert_eq!(identity.user_id, "alice");
        assert_eq!(identity.roles, Roles::from_iter([Role::User]));
        assert_eq!(identity.expires_at, UNIX_EPOCH + Duration::from_secs(NOW + 60));
    }

    #[test]
    fn roles_that_we_do_not_know_give_nothing() {
        let identity = read(&with(r#","roles":["chat_admin","root","Admin"]"#)).unwrap();
        assert_eq!(identity.roles, Roles::from_iter([Role::ChatAdmin]));
        assert_eq!(read(&with(r#","roles":["root"]"#)).unwrap().roles, Roles::default());
        assert_eq!(read(&with(r#","roles":"admin"#).replace("admin", "admin\"")).unwrap().roles.iter().count(), 1);
    }

    #[test]
    fn scopes_come_from_both_claims_and_are_bounded() {
        let identity = read(&with(r#","roles":["service"],"scope":"generate files","scopes":["sessions"]"#)).unwrap();
        assert!(identity.is_service_with("generate") && identity.is_service_with("sessions"));
        assert!(!identity.is_service_with("admin"));
        let many: Vec<_> = (0..33).map(|i| format!("s{i}")).collect();
        assert_eq!(read(&with(&format!(r#","scope":"{}""#, many.join(" ")))), Err(TokenError::BadClaim("scope")));
        let roles = vec!["\"x\""; 65].join(",");
        assert_eq!(read(&with(&format!(r#","roles":[{roles}]"#))), Err(TokenError::BadClaim("roles")));
    }

    #[test]
    fn a_scope_without_the_role_is_worth_nothing() {
        assert!(!read(&with(r#","scope":"generate""#)).unwrap().is_service_with("generate"));
    }

    #[test]
    fn the_subject_is_bounded_and_visible() {
        assert_eq!(read(&with("").replace("alice", &"a".repeat(255))).unwrap().user_id.len(), 255);
        for bad in ["", " ", " alice", "a\\u0000b", "a\\nb", "a\\u202eb", &"a".repeat(256)] {
            assert_eq!(read(&with("").replace("alice", bad)), Err(TokenError::BadClaim("sub")), "{bad}");
        }
        assert_eq!(read(r#"{"exp":1800000060}"#), Err(TokenError::MissingClaim("sub")));
        assert_eq!(read(r#"{"exp":1800000060,"sub":7}"#), Err(TokenError::Malformed));
    }

    #[test]
    fn the_alias_of_the_subject_must_not_contradict_it() {
        assert_eq!(read(r#"{"user_id":"bob","exp":1800000060}"#).unwrap().user_id, "bob");
        assert_eq!(read(&with(r#","user_id":"alice""#)).unwrap().user_id, "alice");
        assert_eq!(read(&with(r#","user_id":"bob""#)), Err(TokenError::BadClaim("user_id")));
    }

    #[test]
    fn a_claim_given_twice_is_refused() {
        assert_eq!(read(&with(r#","sub":"bob""#)), Err(TokenError::Malformed));
    }

    #[test]
    fn a_display_name_is_cut_on_a_character_and_cleaned() {
        let long = "é".repeat(150);
        assert_eq!(read(&with(&format!(r#","name":"{long}""#))).unwrap().display_name, "é".repeat(100));
        assert_eq!(read(&with(r#","name":" A\u0007l\u202eice\n ""#)).unwrap().display_name, "Alice");
    }

    #[test]
    fn times_are_judged_with_the_leeway() {
        let at = |exp: i64| read(&format!(r#"{{"sub":"a","exp":{exp}}}"#));
        let now = i64::try_from(NOW).unwrap();
        assert!(at(now - 29).is_ok());
        assert_eq!(at(now - 29).unwrap().expires_at, UNIX_EPOCH + Duration::from_secs(NOW + 1));
        assert_eq!(at(now - 30), Err(TokenError::Expired));
        assert_eq!(at(-1), Err(TokenError::BadClaim("exp")));
        assert_eq!(at(i64::MAX), Err(TokenError::BadClaim("exp")));
        assert_eq!(read(r#"{"sub":"a"}"#), Err(TokenError::MissingClaim("exp")));
        assert!(read(&with(&format!(r#","nbf":{}"#, NOW + 30))).is_ok());
        assert_eq!(read(&with(&format!(r#","nbf":{}"#, NOW + 31))), Err(TokenError::NotYetValid));
        assert!(read(r#"{"sub":"a","exp":1800000060.5}"#).is_ok());
    }

    #[test]
    fn issuer_and_audience_must_be_the_configured_ones() {
        let both = with(r#","iss":"us","aud":["x","chatbox"]"#);
        assert!(read_with(&both, "us", "chatbox").is_ok());
        assert_eq!(read_with(&both, "them", "chatbox"), Err(TokenError::WrongIssuer));
        assert_eq!(read_with(&both, "us", "other"), Err(TokenError::WrongAudience));
        assert_eq!(read_with(&with(""), "us", ""), Err(TokenError::WrongIssuer));
        assert_eq!(read_with(&with(""), "", "chatbox"), Err(TokenError::WrongAudience));
        assert!(read_with(&with(r#","aud":"chatbox""#), "", "chatbox").is_ok());
        assert!(read_with(&with(r#","iss":"anyone""#), "", "").is_ok());
    }

    #[test]
    fn a_token_for_another_audience_is_refused_also_when_none_is_configured() {
        assert_eq!(read(&with(r#","aud":"elsewhere""#)), Err(TokenError::WrongAudience));
    }

    #[test]
    fn debug_does_not_show_the_name() {
        let identity = read(&with(r#","name":"Alice Liddell""#)).unwrap();
        assert!(!format!("{identity:?}").contains("Liddell"));
    }
}
