"""The promises of the contract, by topic; `SchedulerContract` puts them together."""
