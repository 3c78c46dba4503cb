"""The data path: motion shards in, token shards out. A room imports only from rooms below it.

    estimate | inspect | report | training | loader   who uses it
    job | statistics | verify                         whole passes
    quality | executors | export                      judge, run, shard
    stages                                            read, tokenize, write, measure
    dataset                                           what lies in an output folder
    run                                               ownership, stop, observer, record
    plan                                              files -> units
    sources (formats/)                                files -> clips
    contract                                          what decides bytes
    settings | storage | tables                       what is asked; files; what Arrow decodes
    errors.py | hashing.py

Read executors/plain_loop.py first: the stages in ten lines; then job/tokenize_job.py, the whole job.
"""
