//! Which cores use a store together. A core with the local bus hears nothing of others, so it must be alone; cores with a
//! common bus may be many. One value of the installation says which it is, and is renewed like a lease: what stands still
//! for the lapse, on the clock of whoever wants to come in, belongs to cores that are gone.

use std::{future::Future, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::error::SessionError;
use crate::store::{BootId, SessionStore, StoreError};

/// Name of the value.
const NAME: &str = "cores";

/// Between two looks at a value that stands in the way.
const LOOK: Duration = Duration::from_millis(250);

/// Why a core may not use the store.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// Another core is there.
    #[error(
        "another core uses this store, and one of the two has bus.url = \"local\"; give all cores the same NATS servers"
    )]
    Occupied,
    /// The store failed.
    #[error("the store could not be asked which cores use it")]
    Store(#[source] SessionError),
}

/// Whether a core can have others beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Company {
    /// It has the local bus.
    Alone,
    /// It has a common bus.
    Together,
}

/// What the value says.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Claim {
    /// `None`: given back.
    company: Option<Company>,
    renewals: u64,
    /// Who renewed it last.
    boot_id: BootId,
}

impl Claim {
    fn to_bytes(&self) -> Vec<u8> {
        let company = match self.company {
            None => 0,
            Some(Company::Alone) => 1,
            Some(Company::Together) => 2,
        };
        let mut bytes = vec![company];
        bytes.extend(self.renewals.to_be_bytes());
        bytes.extend(self.boot_id);
        bytes
    }

    /// What is no claim of a form that is known is treated as somebody's who is alone.
    fn from_bytes(bytes: &[u8]) -> Self {
        let parse = || {
            let (company, rest) = bytes.split_first()?;
            let (renewals, boot_id) = rest.split_first_chunk()?;
            let company = match company {
                0 => None,
                2 => Some(Company::Together),
                _ => Some(Company::Alone),
            };
            Some(Self { company, renewals: u64::from_be_bytes(*renewals), boot_id: boot_id.try_into().ok()? })
        };
        parse().unwrap_or(Self { company: Some(Company::Alone), renewals: 0, boot_id: [0; 16] })
    }
}

/// A core's right to use a store.
#[derive(Debug)]
pub struct Membership {
    store: Arc<dyn SessionStore>,
    company: Company,
    boot_id: BootId,
    lapse: Duration,
    call_timeout: Duration,
}

impl Membership {
    /// Comes in, or waits until a core that stands in the way has been still for the lapse.
    ///
    /// # Errors
    /// Another core that cannot be beside this one is alive; the store failed.
    pub async fn join(
        store: Arc<dyn SessionStore>,
        company: Company,
        lapse: Duration,
        call_timeout: Duration,
    ) -> Result<Self, Refused> {
        let member = Self { store, company, boot_id: rand::random(), lapse, call_timeout };
        let mut standing: Option<(Vec<u8>, Instant)> = None;
        loop {
            let now = Instant::now();
            let Some(bytes) = member.read().await.map_err(Refused::Store)? else {
                let mine = member.claim(0).to_bytes();
                member.call(member.store.init_installation_value(NAME, mine)).await.map_err(Refused::Store)?;
                continue;
            };
            let claim = Claim::from_bytes(&bytes);
            let mine = member.claim(claim.renewals + 1).to_bytes();
            let free = match (claim.company, company) {
                (None, _) => true,
                (Some(Company::Together), Company::Together) => true,
                _ => claim.boot_id == member.boot_id,
            };
            let stood_still = match &standing {
                Some((before, since)) if *before == bytes => now.duration_since(*since) >= lapse,
                Some(_) if !free => return Err(Refused::Occupied),
                Some(_) | None => {
                    if !free {
                        tracing::info!("another core may be using the store, waiting whether it is alive");
                    }
                    standing = Some((bytes.clone(), now));
                    false
                }
            };
            if free || stood_still {
                let replaced = member.store.replace_installation_value(NAME, bytes, mine);
                if member.call(replaced).await.map_err(Refused::Store)? || (free && company == Company::Together) {
                    return Ok(member);
                }
                standing = None;
            } else {
                tokio::time::sleep(LOOK).await;
            }
        }
    }

    /// Renews the claim; returns only when it is lost: another core has judged this one dead.
    pub async fn keep(&self) {
        loop {
            tokio::time::sleep(self.lapse / 4).await;
            match self.renew().await {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "the claim on the store was not renewed");
                }
            }
        }
    }

    async fn renew(&self) -> Result<bool, SessionError> {
        let Some(bytes) = self.read().await? else { return Ok(false) };
        let claim = Claim::from_bytes(&bytes);
        let ours =
            claim.company == Some(self.company) && (self.company == Company::Together || claim.boot_id == self.boot_id);
        if ours {
            let mine = self.claim(claim.renewals + 1).to_bytes();
            // That another of us was quicker is as good.
            self.call(self.store.replace_installation_value(NAME, bytes, mine)).await?;
        }
        Ok(ours)
    }

    /// Gives the claim back, so that the next core need not wait.
    pub async fn leave(&self) {
        if self.company == Company::Together {
            // Others may be there.
            return;
        }
        let leave = async {
            let Some(bytes) = self.read().await? else { return Ok(()) };
            let claim = Claim::from_bytes(&bytes);
            if claim.boot_id == self.boot_id {
                let free = Claim { company: None, ..claim }.to_bytes();
                self.call(self.store.replace_installation_value(NAME, bytes, free)).await?;
            }
            Ok::<_, SessionError>(())
        };
        if let Err(error) = leave.await {
            tracing::warn!(error = &error as &dyn std::error::Error, "the claim on the store was not given back");
        }
    }

    fn claim(&self, renewals: u64) -> Claim {
        Claim { company: Some(self.company), renewals, boot_id: self.boot_id }
    }

    async fn read(&self) -> Result<Option<Vec<u8>>, SessionError> {
        self.call(self.store.installation_value(NAME)).await
    }

    async fn call<T>(&self, call: impl Future<Output = Result<T, StoreError>>) -> Result<T, SessionError> {
        match tokio::time::timeout(self.call_timeout, call).await {
            Ok(result) => Ok(result?),
            Err(_) => Err(SessionError::StoreTimeout),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::tests::shared::Cluster;

    const LAPSE: Duration = Duration::from_secs(10);

    async fn join(store: &Arc<dyn SessionStore>, company: Company) -> Result<Membership, Refused> {
        Membership::join(store.clone(), company, LAPSE, Duration::from_secs(5)).await
    }

    #[tokio::test(start_paused = true)]
    async fn beside_a_core_that_is_alone_no_other_comes_in_and_together_many_do() {
        let store = Cluster::new().stoppable();
        let one = join(&store, Company::Alone).await.unwrap();
        for company in [Company::Alone, Company::Together] {
            tokio::select! {
                () = one.keep() => panic!("nobody takes it over"),
                second = join(&store, company) => assert!(matches!(second, Err(Refused::Occupied))),
            }
        }
        one.leave().await;
        let began = Instant::now();
        let two = join(&store, Company::Together).await.unwrap();
        let three = join(&store, Company::Together).await.unwrap();
        assert!(began.elapsed() < LAPSE, "what was given back is free at once");
        tokio::select! {
            () = two.keep() => panic!("nobody takes it over"),
            () = three.keep() => panic!("nobody takes it over"),
            fourth = join(&store, Company::Alone) => assert!(matches!(fourth, Err(Refused::Occupied))),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_core_that_is_gone_stands_in_the_way_for_the_lapse_and_notices_when_it_comes_back() {
        let store = Cluster::new().stoppable();
        let gone = join(&store, Company::Alone).await.unwrap();
        let began = Instant::now();
        let next = join(&store, Company::Alone).await.unwrap();
        assert!(began.elapsed() >= LAPSE && began.elapsed() < LAPSE * 2);
        gone.keep().await;
        gone.leave().await;
        assert!(next.renew().await.unwrap(), "what is another's is not given back");
    }
}
