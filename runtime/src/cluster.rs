//! A running node: the only room that knows all others, and the handle through which a program,
//! the HTTP ingress and the command line reach the cluster.
