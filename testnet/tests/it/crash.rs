//! Crashes, full disks and rotten disks: what was acknowledged stays, what is wrong is not served.

mod damage;
mod full;
mod killed;
