"""Commands: what a person types, turned into requests to `pipeline`. A room imports only from rooms below it:

cli                               all commands, registered; main
bench | demo_codecs               measures speed | made the shipped codecs
demo                              motion made up here, and the first try
commands | cluster | deploy       run, dataset, codec | jobs of a Ray cluster | manifests
app | output                      options, errors, exit codes | display, log, run record
session                           Ray, signals, environment
"""
