//! Commands about people who run the platform.

use clap::Subcommand;

use super::failure::Failure;
use super::output::Printed;
use super::{Needs, Operation, OpsArgs};
use crate::audit::Actor;
use crate::cx::OpsCx;
use crate::identity;

#[derive(Subcommand)]
pub(super) enum Admin {
    /// Give the platform role to somebody who is registered
    Grant {
        email: String,
        #[command(flatten)]
        ops: OpsArgs,
    },
    /// Take the platform role from somebody; the last one who has it keeps it
    Revoke {
        email: String,
        #[command(flatten)]
        ops: OpsArgs,
    },
}

impl Operation for Admin {
    fn needs(&self) -> Needs<'_> {
        let (Self::Grant { ops, .. } | Self::Revoke { ops, .. }) = self;
        Needs::of(ops)
    }

    async fn run(self, cx: &OpsCx) -> Result<Printed, Failure> {
        Ok(match self {
            Self::Grant { email, .. } => {
                let user = identity::admin_grant(cx, Actor::Cli, &email).await?;
                let line = format!("{} is now a platform admin", user.email);
                Printed::new(serde_json::to_value(identity::routes::UserView::from(user))?).line(line)
            }
            Self::Revoke { email, .. } => {
                let user = identity::admin_revoke(cx, Actor::Cli, &email).await?;
                let line = format!("{} is no platform admin", user.email);
                Printed::new(serde_json::to_value(identity::routes::UserView::from(user))?).line(line)
            }
        })
    }
}
