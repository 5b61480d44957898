//! Control beside modelled sites: one program, so that it is linked once.

mod beside;
mod caps;
mod circle;
mod cut_over;
mod guest_network;
mod hosts;
mod jobs;
mod landing;
mod meeting;
mod pages;
mod policies;
mod sites;
mod trouble;
